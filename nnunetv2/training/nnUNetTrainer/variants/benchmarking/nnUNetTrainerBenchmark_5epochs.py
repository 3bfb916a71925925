"""How long an epoch takes on this machine."""

from __future__ import annotations

import os
from os.path import join
from typing import Any

import torch

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.versions import package_version

RESULT_FILE = "benchmark_result.json"


class nnUNetTrainerBenchmark_5epochs(nnUNetTrainer):
    """Trains five epochs and writes the time of the fastest to ``benchmark_result.json`` in the folder of fold 0.

    The file keeps one entry for each combination of GPU and versions. Nothing is validated, and no checkpoint is written.

    Raises:
        ValueError: For another fold than 0, so that all results of a dataset stand in one file.
    """

    num_epochs = 5
    disable_checkpointing = True

    def __init__(
        self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device = torch.device("cuda")
    ) -> None:
        if fold != 0:
            raise ValueError(f"{type(self).__name__} measures with fold 0 only, not with fold {fold}.")
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.crashed_with_runtime_error = False  # such as for lack of GPU memory

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: there is no model worth it."""

    def save_checkpoint(self, filename: str) -> None:
        """Nothing: there is no model worth it."""

    def run_training(self) -> None:
        """Train; a failure is a result, too, and is raised after it is written down."""
        try:
            super().run_training()
        except RuntimeError:
            self.crashed_with_runtime_error = True
            self.stop_dataloaders()
            self.write_result()
            raise

    def on_train_end(self) -> None:
        super().on_train_end()
        self.write_result()

    def write_result(self) -> None:
        """Add the result to those of other machines."""
        if self.local_rank != 0:
            return
        file = join(self.output_folder, RESULT_FILE)
        results = load_json(file) if os.path.isfile(file) else {}
        result = self.result()
        results["__".join(str(result[name]).replace(" ", "") for name in ("cudnn_version", "torch_version", "gpu_name", "num_gpus"))] = (
            result
        )
        save_json(results, file)
        self.print_to_log_file(f"Fastest epoch: {result['fastest_epoch']} s")

    def result(self) -> dict[str, Any]:
        """Versions, device and the seconds of the fastest epoch, or a text if the training failed."""
        on_gpu = self.device.type == "cuda"
        seconds = [
            end - start
            for start, end in zip(
                self.logger.get_value("epoch_start_timestamps", None), self.logger.get_value("epoch_end_timestamps", None), strict=False
            )
        ]
        return {
            "torch_version": torch.__version__,
            "cudnn_version": torch.backends.cudnn.version() if on_gpu else None,
            "gpu_name": torch.cuda.get_device_name(self.device) if on_gpu else self.device.type,
            "fastest_epoch": "Not enough VRAM or another failure" if self.crashed_with_runtime_error else min(seconds),
            "num_gpus": torch.distributed.get_world_size() if self.is_ddp else 1,
            "nnunetv2_version": package_version(),
        }

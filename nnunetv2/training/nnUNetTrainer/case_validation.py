"""The validation at the end of a training: whole cases, predicted by the path of the predictor, scored like any prediction."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from os.path import join
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.classification_metrics import classification_summary
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.inference.export_prediction import export_prediction_from_logits, resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.compilation import unwrapped_network
from nnunetv2.utilities.file_io import save_json
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.label_handling.classification_table import write_classification_csv
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

QUEUED_EXPORTS = 2  # cases that may wait for an export process, each with its logits in memory
JOINT_HEADS = "joint"  # the heads that were trained together with the segmentation


def validate_cases(trainer: nnUNetTrainer, save_probabilities: bool = False) -> dict:
    """Predict the validation cases of a trainer into ``validation`` and score them.

    Writes the segmentations, ``summary.json``, and with heads ``classification.csv`` and ``classification_summary.json``; for a first
    stage of a cascade also the segmentations that the next stage is trained with.

    Args:
        trainer: Initialized, with the weights to validate.
        save_probabilities: Also write probabilities, for ensembles.

    Returns:
        The content of ``summary.json``.
    """
    if trainer.fold == "all":
        trainer.print_to_log_file("WARNING: fold all validates on the training cases. These scores say nothing about new cases.")
    folder = join(trainer.output_folder, "validation")
    os.makedirs(folder, exist_ok=True)
    predictor = _predictor(trainer)
    _, dataset = trainer.get_tr_and_val_datasets()
    class_rows: dict[str, dict[str, np.ndarray]] = {}
    with _segmentation_at_full_resolution(trainer), _Exports(trainer.device) as exports:
        for identifier in dataset.identifiers:
            trainer.print_to_log_file(f"predicting {identifier}")
            data, _, previous_stage, properties = dataset.load_case(identifier)
            data = torch.from_numpy(_with_previous_stage(trainer, np.asarray(data[:]), previous_stage))
            if predictor.classification_tasks:
                logits, classification = predictor.predict_logits_and_classes_from_preprocessed_data(data)
                class_rows[identifier] = classification
            else:
                logits, classification = predictor.predict_sliding_window_return_logits(data), {}
            exports.submit(
                identifier,
                _export,
                logits.cpu().numpy(),
                properties,
                trainer.configuration_manager,
                trainer.plans_manager,
                trainer.dataset_json,
                join(folder, identifier),
                save_probabilities,
                _next_stages(trainer, identifier, properties),
                classification,
            )
    return _score(trainer, folder, class_rows)


def _predictor(trainer: nnUNetTrainer) -> nnUNetPredictor:
    """A predictor with the network of the trainer."""
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=True,
        perform_everything_on_device=True,
        device=trainer.device,
        verbose=False,
        verbose_preprocessing=False,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        unwrapped_network(trainer.network),
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
        classification_entry=trainer.classification_entry(),
    )
    return predictor


@contextmanager
def _segmentation_at_full_resolution(trainer: nnUNetTrainer) -> Iterator[None]:
    """Evaluation mode without deep supervision, which is back as it was afterwards."""
    if trainer.enable_deep_supervision:
        trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    try:
        yield
    finally:
        if trainer.enable_deep_supervision:
            trainer.set_deep_supervision_enabled(True)


def _with_previous_stage(trainer: nnUNetTrainer, data: np.ndarray, previous_stage: Any) -> np.ndarray:
    """The image, in a cascade with the labels of the previous stage as further channels."""
    if not trainer.is_cascaded:
        return data
    one_hot = convert_labelmap_to_one_hot(
        np.asarray(previous_stage[:]), trainer.label_manager.foreground_labels, output_dtype=data.dtype
    )
    # A single channel axis may be left of the stored segmentation.
    return np.vstack((data, one_hot.reshape(-1, *data.shape[1:])))


def _next_stages(trainer: nnUNetTrainer, identifier: str, properties: Mapping) -> list[tuple[str, Any, list[int]]]:
    """For each stage that is trained on this one: output file without ending, its dataset class and the shape of the case there."""
    stages = []
    for name in trainer.configuration_manager.next_stage_names or ():
        configuration = trainer.plans_manager.get_configuration(name)
        folder = join(trainer.preprocessed_dataset_folder_base, configuration.data_identifier)
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        try:
            dataset_class = infer_dataset_class(folder)
            shape = list(dataset_class(folder, [identifier]).load_case(identifier)[0].shape[1:])
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            trainer.print_to_log_file(f"{identifier} is not preprocessed for the next stage {name}, its segmentation is left out: {error}")
            continue
        output_folder = join(
            get_output_folder(
                trainer.plans_manager.dataset_name, type(trainer).__name__, trainer.plans_manager.plans_name, trainer.configuration_name
            ),
            "predicted_next_stage",
            name,
        )
        os.makedirs(output_folder, exist_ok=True)
        stages.append((join(output_folder, identifier), dataset_class, shape))
    return stages


def _export(
    logits: np.ndarray,
    properties: dict,
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json: dict,
    output_file_truncated: str,
    save_probabilities: bool,
    next_stages: list[tuple[str, Any, list[int]]],
    classification: Mapping[str, np.ndarray],
) -> None:
    """Write one case; runs in an export process."""
    export_prediction_from_logits(
        logits,
        properties,
        configuration_manager,
        plans_manager,
        dataset_json,
        output_file_truncated,
        save_probabilities,
        classification=classification,
    )
    for output_file, dataset_class, shape in next_stages:
        resample_and_save(
            logits, shape, output_file, plans_manager, configuration_manager, properties, dataset_json, dataset_class=dataset_class
        )


class _Exports:
    """Writes cases beside the prediction of the next ones; on the CPU in this process, since there nothing is idle."""

    def __init__(self, device: torch.device) -> None:
        self._pool = None
        if device.type != "cpu" and default_num_processes > 1:
            self._pool = ProcessPoolExecutor(default_num_processes, mp_context=multiprocessing.get_context("spawn"))
        self._running: dict[Future, str] = {}
        self._errors: dict[str, Exception] = {}

    def __enter__(self) -> _Exports:
        return self

    def submit(self, identifier: str, function: Callable[..., None], *arguments: Any) -> None:
        """Write one case, at once or soon; waits while too many are waiting."""
        if self._pool is None:
            try:
                function(*arguments)
            except Exception as error:
                self._errors[identifier] = error
            return
        while len(self._running) >= default_num_processes + QUEUED_EXPORTS:
            wait(self._running, return_when=FIRST_COMPLETED)
            self._collect()
        self._running[self._pool.submit(function, *arguments)] = identifier

    def _collect(self) -> None:
        """Take note of the cases that are done."""
        for future in [future for future in self._running if future.done()]:
            identifier = self._running.pop(future)
            if future.exception() is not None:
                self._errors[identifier] = future.exception()

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)
            if kind is None:
                self._collect()
        if kind is None and self._errors:
            listed = "\n".join(f"  {identifier}: {type(error).__name__}: {error}" for identifier, error in self._errors.items())
            raise RuntimeError(f"{len(self._errors)} validation cases could not be written:\n{listed}") from next(
                iter(self._errors.values())
            )


def _score(trainer: nnUNetTrainer, folder: str, class_rows: Mapping[str, Mapping[str, np.ndarray]]) -> dict:
    """Compare with the annotations, and log the result."""
    label_manager = trainer.label_manager
    summary = compute_metrics_on_folder(
        join(trainer.preprocessed_dataset_folder_base, "gt_segmentations"),
        folder,
        join(folder, "summary.json"),
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels,
        label_manager.ignore_label,
        num_processes=1 if trainer.device.type == "cpu" else default_num_processes,
        chill=True,
    )
    trainer.print_to_log_file("All cases of the validation are predicted", also_print_to_console=True)
    trainer.print_to_log_file("Mean Validation Dice: ", summary["foreground_mean"]["Dice"], also_print_to_console=True)
    trainer.logger.log_summary("final_val/foreground_dice", summary["foreground_mean"]["Dice"])
    for label, metrics in summary["mean"].items():
        trainer.logger.log_summary(f"final_val/class_{label}_dice", metrics["Dice"])
    if class_rows:
        _score_classes(trainer, folder, class_rows)
    return summary


def _score_classes(trainer: nnUNetTrainer, folder: str, class_rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write and log the classes of the validation cases."""
    tasks = trainer.classification_tasks
    write_classification_csv(join(folder, "classification.csv"), tasks, class_rows)
    summary = classification_summary(tasks, class_rows, trainer.case_labels())
    save_json({JOINT_HEADS: summary}, join(folder, "classification_summary.json"))
    for name, entry in summary["tasks"].items():
        scores = ", ".join(f"{score} {'undefined' if value is None else f'{value:.4f}'}" for score, value in entry["scores"].items())
        trainer.print_to_log_file(f"Validation classes, {name} ({entry['n']} cases, {entry['unknown']} unknown): {scores}")
        for score, value in entry["scores"].items():
            trainer.logger.log_summary(f"final_val/{name}_{score}", value)
    trainer.print_to_log_file(f"Validation case score: {summary['case_score']}")

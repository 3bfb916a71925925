"""Interrupted trainings go on as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_datasets import PLANS
from tiny_trainings import make_trainer, same, weights

from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file

Folders = dict[str, Path]
DOES_NOT_REPEAT = ("epoch_start_timestamps", "epoch_end_timestamps")


class Interrupted(Exception):
    pass


def interrupted_after(trainer_class: type[nnUNetTrainer], epoch: int) -> type[nnUNetTrainer]:
    """The trainer, writing checkpoint_latest.pth after every epoch and stopping in the middle of one."""

    class Trainer(trainer_class):
        save_every = 1

        def on_validation_epoch_start(self) -> None:
            super().on_validation_epoch_start()
            if self.current_epoch == epoch:
                raise Interrupted

    Trainer.__name__ = trainer_class.__name__
    return Trainer


def assert_same_checkpoint(first: Path, second: Path) -> None:
    """Everything but the times."""
    a, b = load_checkpoint_file(first), load_checkpoint_file(second)
    for content in (a, b):
        for name in DOES_NOT_REPEAT:
            content["logging"].pop(name)
    different = [key for key in a if not same(a[key], b[key])]
    assert list(a) == list(b)
    assert not different, different


class DrawsRandomNumbers(nnUNetTrainer):
    """As a user's trainer may, from every global generator."""

    def train_step(self, batch: dict) -> dict:
        noise = random.random() + float(np.random.rand()) + float(torch.rand(1))
        return super().train_step({**batch, "data": batch["data"] + noise})


def test_the_content_of_a_checkpoint_is_as_good_as_its_file(tiny_training: Folders) -> None:
    first = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], dataset="Dataset002_Plain")
    first.initialize()
    file = Path(first.output_folder, "checkpoint_final.pth")
    first.save_checkpoint(str(file))
    second = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], dataset="Dataset002_Plain", seed=1)
    second.load_checkpoint(load_checkpoint_file(file))
    assert second.current_epoch == 1
    assert same(weights(second), weights(first))


@pytest.mark.parametrize("trainer_class", [nnUNetTrainer, DrawsRandomNumbers, nnUNetTrainerMultitask])
def test_a_continued_training_ends_with_the_same_checkpoint(
    trainer_class: type[nnUNetTrainer], tiny_training: Folders, tmp_path: Path
) -> None:
    whole = make_trainer(trainer_class, tiny_training["preprocessed"], num_epochs=4)
    whole.save_every = 1
    whole.run_training()
    reference = Path(whole.output_folder, "checkpoint_final.pth").rename(tmp_path / "reference.pth")
    for path in Path(whole.output_folder).glob("*.pth"):
        path.unlink()

    first = make_trainer(interrupted_after(trainer_class, 2), tiny_training["preprocessed"], num_epochs=4)
    with pytest.raises(Interrupted):
        first.run_training()
    torch.manual_seed(5), np.random.seed(5)
    # length and seed come from the checkpoint
    second = make_trainer(trainer_class, tiny_training["preprocessed"], seed=None)
    second.run_options = {}
    maybe_load_checkpoint(second, continue_training=True, validation_only=False)
    assert second.current_epoch == 2
    assert second.num_epochs == 4
    second.run_training()

    assert same(weights(whole), weights(second))
    assert_same_checkpoint(reference, Path(second.output_folder, "checkpoint_final.pth"))


def test_a_killed_process_is_continued_by_the_command(tiny_training: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "trainers"
    folder.mkdir()
    (folder / "slow_trainer.py").write_text(
        "import time\n"
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask\n"
        "class SlowTrainer(nnUNetTrainerMultitask):\n"
        "    save_every = 1\n"
        "    def on_train_epoch_start(self):\n"
        "        super().on_train_epoch_start()\n"
        "        time.sleep(1.5 if self.current_epoch == 2 else 0)\n"
    )
    environment = {**os.environ, "nnUNet_extTrainer": str(folder), "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}
    command = [
        *(sys.executable, "-m", "nnunetv2.cli.train", "1", "3d_fullres", "0", "-tr", "SlowTrainer", "-p", PLANS, "-device", "cpu"),
        *("--seed", "7", "--epochs", "4", "--iterations_per_epoch", "2"),
    ]
    finals = []
    for name, kill in (("whole", False), ("killed", True)):
        results = tmp_path / name
        results.mkdir()
        environment["nnUNet_results"] = str(results)
        fold = results / "Dataset001_Classes" / f"SlowTrainer__{PLANS}__3d_fullres" / "fold_0"
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if kill:
            wait_for_epochs(process, fold / "checkpoint_latest.pth", epochs=2)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert not (fold / "checkpoint_final.pth").exists()
            process = subprocess.Popen([*command, "--c"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output[-3000:]
        finals.append(fold / "checkpoint_final.pth")
    assert "after 2 epochs" in output
    assert_same_checkpoint(*finals)


def wait_for_epochs(process: subprocess.Popen, checkpoint: Path, epochs: int) -> None:
    """Until a checkpoint says that so many epochs are done; it is replaced in one step, so it can be read at any time."""
    for _ in range(1200):
        if process.poll() is not None:
            pytest.fail(process.communicate()[0][-3000:])
        if checkpoint.is_file() and load_checkpoint_file(checkpoint)["current_epoch"] == epochs:
            return
        time.sleep(0.1)
    process.kill()
    pytest.fail("no checkpoint")


def test_nothing_to_continue_from_is_said_and_a_new_training_starts(
    tiny_training: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(nnUNetTrainer, tiny_training["preprocessed"])
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    assert "no checkpoint" in capsys.readouterr().out
    assert not trainer.was_initialized


def test_validation_alone_needs_a_finished_training(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainer, tiny_training["preprocessed"])
    with pytest.raises(FileNotFoundError, match="checkpoint_final.pth does not exist"):
        maybe_load_checkpoint(trainer, continue_training=False, validation_only=True)


def test_checkpoints_have_nnunets_entries_and_are_plain_data(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"], num_epochs=1)
    trainer.run_training()
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=True)
    assert {
        "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
        "trainer_name", "inference_allowed_mirroring_axes",
    } <= set(checkpoint)  # fmt: skip
    assert checkpoint["current_epoch"] == 1
    assert checkpoint["trainer_name"] == "nnUNetTrainerMultitask"
    assert list(checkpoint["init_args"]) == ["plans", "configuration", "fold", "dataset_json", "device"]
    assert checkpoint["classification"]["tasks"]["subtype"]["classes"] == ["dark", "bright"]
    assert checkpoint["head_optimizer_state"]["state"]


def test_latest_is_written_when_time_is_up(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], num_epochs=3)
    trainer.save_every_seconds = 1e9
    written: list[tuple[int, str]] = []
    trainer.save_checkpoint = lambda filename: written.append((trainer.current_epoch, Path(filename).name))
    trainer.on_epoch_start = lambda: (
        setattr(trainer, "save_every_seconds", 0 if trainer.current_epoch == 1 else 1e9),
        nnUNetTrainer.on_epoch_start(trainer),
    )
    trainer.run_training()
    assert [entry for entry in written if entry[1] in ("checkpoint_latest.pth", "checkpoint_final.pth")] == [
        (1, "checkpoint_latest.pth"),
        (2, "checkpoint_final.pth"),
    ]


def test_a_checkpoint_of_stock_nnunet_is_continued(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], num_epochs=1)
    trainer.run_training()
    file = Path(trainer.output_folder, "checkpoint_final.pth")
    stock = load_checkpoint_file(file)
    for name in ("classification", "head_optimizer_state", "training_state"):
        del stock[name]
    stock["_best_ema"] = np.float32(stock["_best_ema"])
    stock["logging"]["mean_fg_dice"] = [np.float32(value) for value in stock["logging"]["mean_fg_dice"]]
    torch.save(stock, file)
    second = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], num_epochs=2)
    maybe_load_checkpoint(second, continue_training=True, validation_only=False)
    assert second.current_epoch == 1
    second.run_training()
    assert len(second.logger.get_checkpoint()["mean_fg_dice"]) == 2

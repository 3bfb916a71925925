#!/usr/bin/env python3
"""Kill a training at random moments until it is through, and compare what it ends with to a training that nobody disturbed.

    PYTHONPATH=tests python tests/benchmarks/kill_and_resume.py --kills 100

A tiny training with classes on the CPU. It writes a checkpoint every epoch, as one does whose epochs take a minute; each start is a process
that continues from the newest checkpoint, and is killed (SIGKILL) at a random moment until ``--kills`` kills are done. Printed: how often
the training could not go on, how many epochs a kill cost, and whether all entries of the last checkpoint but the times are the same bit by bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

EPOCHS, STEPS = 300, 3
NEVER_THE_SAME = ("epoch_start_timestamps", "epoch_end_timestamps")


def train(results: Path, epochs: int) -> None:
    """Train, or go on from the newest checkpoint; runs in a process of its own."""
    import torch

    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    torch.set_num_threads(1)
    os.environ["nnUNet_results"] = str(results)
    trainer = get_trainer_from_args("1", "3d_fullres", 0, "nnUNetTrainerMultitask", "nnUNetResEncUNetXSPlans", device=torch.device("cpu"))
    trainer.seed = 0
    trainer.save_every = 1
    trainer.head_refit = "none"
    trainer.use_run_options({"num_epochs": epochs, "num_iterations_per_epoch": STEPS, "num_val_iterations_per_epoch": 1})
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()


def prepare(folder: Path) -> None:
    """The tiny dataset of the tests, preprocessed."""
    from tiny_datasets import PLANNER, SUBTYPE, write_tiny_dataset

    from nnunetv2.cli.plan_and_preprocess import plan_and_preprocess_entry

    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    write_tiny_dataset(folder / "raw" / "Dataset001_Classes", classification={"subtype": SUBTYPE}, unknown_every=4)
    plan_and_preprocess_entry(["-d", "1", "-pl", PLANNER, "-c", "3d_fullres", "-np", "1", "-npfp", "1", "--no_pbar"])


def epochs_begun(fold: Path) -> int:
    """Epochs that the logs say were begun, over all starts of the training."""
    text = "".join(log.read_text(errors="replace") for log in sorted(fold.glob("training_log_*.txt"))[-1:])
    begun = [int(line.split("Epoch ")[1].split()[0]) for line in text.splitlines() if ": Epoch " in line and "time" not in line]
    return max(begun, default=-1) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args()
    context = get_context("fork")  # the imports are done once, so that a kill costs no minute
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="nnunet-kills-") as temporary:
        folder = Path(temporary)
        prepare(folder)
        import nnunetv2.run.run_training
        import nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask  # noqa: F401
        from nnunetv2.utilities.checkpoint_io import load_checkpoint_file

        folds = {
            name: folder / name / "Dataset001_Classes" / "nnUNetTrainerMultitask__nnUNetResEncUNetXSPlans__3d_fullres" / "fold_0"
            for name in ("whole", "killed")
        }
        silence = os.open(os.devnull, os.O_WRONLY)

        def start(name: str):
            process = context.Process(target=_quietly, args=(silence, folder / name, EPOCHS))
            process.start()
            return process

        begun = time.perf_counter()
        process = start("whole")
        process.join()
        assert process.exitcode == 0, "the undisturbed training failed"
        whole = time.perf_counter() - begun
        kills, failed, lost = 0, 0, []
        pause = whole / (args.kills + 1)
        while not (folds["killed"] / "checkpoint_final.pth").is_file():
            process = start("killed")
            process.join(moments.uniform(0.2, 2) * pause + 0.5 if kills < args.kills else None)
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
                checkpoints = [load_checkpoint_file(file)["current_epoch"] for file in folds["killed"].glob("checkpoint_*.pth")]
                if checkpoints:
                    lost.append(epochs_begun(folds["killed"]) - max(checkpoints))
            elif process.exitcode != 0:
                failed += 1
                break
        print(f"{kills} kills, starts that failed: {failed}")
        print(f"epochs begun and not kept by a kill: median {statistics.median(lost)}, most {max(lost)}")
        ends = [load_checkpoint_file(fold / "checkpoint_final.pth") for fold in folds.values()]
        for end in ends:
            for name in NEVER_THE_SAME:
                end["logging"].pop(name)
        from tiny_trainings import same

        different = [key for key in ends[0] if not same(ends[0][key], ends[1][key])]
        print(f"entries of the last checkpoint that differ from the undisturbed training: {different or 'none'}")


def _quietly(silence: int, results: Path, epochs: int) -> None:
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    train(results, epochs)


if __name__ == "__main__":
    main()

"""The demo: simulated data taken through the real commands, from raw files to masks, classes and scores."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.demo.phantom import FILE_ENDING, LABELS, write_phantom_dataset

DATASET_NAME = "Dataset001_Phantom"
PLANNER, PLANS = "nnUNetPlannerResEncXS", "nnUNetResEncUNetXSPlans"
TRAINER, CONFIGURATION, FOLD = "nnUNetTrainerMultitask", "3d_fullres", "0"
TASK = "subtype"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Size of the demo; the defaults take a few minutes on two CPU cores."""

    folder: Path
    seed: int = 0
    num_training: int = 60
    num_test: int = 30
    epochs: int = 20
    iterations_per_epoch: int = 80
    device: str | None = None  # None: the training command's own choice

    @property
    def dataset_folder(self) -> Path:
        return self.folder / "nnUNet_raw" / DATASET_NAME

    @property
    def model_folder(self) -> Path:
        return self.folder / "nnUNet_results" / DATASET_NAME / f"{TRAINER}__{PLANS}__{CONFIGURATION}"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions"


def run_demo(settings: DemoSettings) -> dict[str, float]:
    """Make the data, run every command and report.

    Returns:
        ``{"dice_organ", "dice_lesion", "macro_f1", "balanced_accuracy", "auroc"}`` on the held-out cases.

    Raises:
        FileExistsError: If the folder holds files already, or is a file.
        RuntimeError: If a command fails; its output was shown.
    """
    if settings.folder.exists() and not settings.folder.is_dir():
        raise FileExistsError(f"{settings.folder} is a file. Choose a folder with -o.")
    if settings.folder.exists() and any(settings.folder.iterdir()):
        raise FileExistsError(f"{settings.folder} is not empty. Choose another folder with -o, or remove it first.")
    start = time.monotonic()
    print(f"Simulating {settings.num_training} training and {settings.num_test} held-out cases in {settings.folder}", flush=True)
    write_phantom_dataset(
        settings.dataset_folder, num_training=settings.num_training, num_test=settings.num_test, seed=settings.seed
    )
    environment = _environment(settings.folder)
    for command in demo_commands(settings):
        _run(command, environment)
    scores = _report(settings)
    print(f"\nFinished in {(time.monotonic() - start) / 60:.1f} minutes.")
    return scores


def demo_commands(settings: DemoSettings) -> list[list[str]]:
    """The commands in order, as a user types them."""
    device = ["-device", settings.device] if settings.device else []
    model = ["-d", "001", "-c", CONFIGURATION, "-f", FOLD, "-tr", TRAINER, "-p", PLANS]
    images, references = settings.dataset_folder / "imagesTs", settings.dataset_folder / "labelsTs"
    return [
        ["nnUNetv2_plan_and_preprocess", "-d", "001", "-pl", PLANNER, "-c", CONFIGURATION, "--verify_dataset_integrity", "-np", "2"],
        [
            *("nnUNetv2_train", "001", CONFIGURATION, FOLD, "-tr", TRAINER, "-p", PLANS, "--seed", str(settings.seed)),
            *("--epochs", str(settings.epochs), "--iterations_per_epoch", str(settings.iterations_per_epoch), *device),
        ],
        ["nnUNetv2_predict", "-i", str(images), "-o", str(settings.predictions), *model, "--save_cls", *device],
        [
            *("nnUNetv2_evaluate_folder", str(references), str(settings.predictions)),
            *("-djfile", str(settings.model_folder / "dataset.json"), "-pfile", str(settings.model_folder / "plans.json")),
        ],
    ]


def _environment(folder: Path) -> dict[str, str]:
    """The caller's environment with nnU-Net's folders below ``folder``."""
    environment = dict(os.environ)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        environment[name] = str(folder / name)
        print(f"export {name}={shlex.quote(environment[name])}")
    return environment


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    """Print a command and run it, its output going to the terminal."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    beside_python = Path(sys.executable).absolute().parent / command[0]
    program = str(beside_python) if beside_python.exists() else shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(f"The command {command[0]} is not on the PATH. Install the package with `pip install -e .` first.")
    status = subprocess.run([program, *command[1:]], env=environment, check=False).returncode
    if status != 0:
        raise RuntimeError(
            f"The demo ended, because {command[0]} failed (exit status {status}); its message stands above. "
            "Start the demo again with another folder (-o), or after removing this one."
        )


def _report(settings: DemoSettings) -> dict[str, float]:
    """Print the table of scores, write the figure and say where everything lies."""
    from nnunetv2.demo.figure import plot_example_cases
    from nnunetv2.evaluation.classification_metrics import classification_summary
    from nnunetv2.utilities.file_io import load_json
    from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks
    from nnunetv2.utilities.label_handling.classification_table import read_classification_csv

    dataset_json = load_json(settings.dataset_folder / "dataset.json")
    tasks = classification_tasks(dataset_json)
    case_labels = CaseLabels.load(settings.dataset_folder, dataset_json | {"case_labels": "labels_test.csv"})
    table = read_classification_csv(settings.predictions / "classification.csv", tasks)
    classification = classification_summary(tasks, table, case_labels)["tasks"][TASK]
    segmentation = load_json(settings.predictions / "summary.json")["mean"]

    figure = settings.folder / "example_cases.png"
    plot_example_cases(
        figure,
        images=settings.dataset_folder / "imagesTs",
        references=settings.dataset_folder / "labelsTs",
        predictions=settings.predictions,
        file_ending=FILE_ENDING,
        true_classes={k: tasks[TASK].format_target(case_labels.target(k, TASK)) for k in case_labels.rows},
        probabilities={k: dict(zip(tasks[TASK].classes, p[TASK], strict=True)) for k, p in table.items()},
    )
    scores = {
        "dice_organ": segmentation[str(LABELS["organ"])]["Dice"],
        "dice_lesion": segmentation[str(LABELS["lesion"])]["Dice"],
        **{name: classification["scores"][name] for name in ("macro_f1", "balanced_accuracy", "auroc")},
    }
    print(f"\nScores on {classification['n']} cases that were never trained on")
    print("  structure       Dice")
    for structure in ("organ", "lesion"):
        print(f"  {structure:<12} {scores[f'dice_{structure}']:7.3f}")
    print(f"  {TASK:<12} precision  recall      F1")
    for name, values in classification["per_class"].items():
        print(f"  {name:<12} {values['precision']:9.3f} {values['recall']:7.3f} {values['f1']:7.3f}")
    print(f"  macro-F1 {scores['macro_f1']:.3f}, balanced accuracy {scores['balanced_accuracy']:.3f}, AUROC {scores['auroc']:.3f}")
    print("\nFiles")
    for what, path in (
        ("dataset", settings.dataset_folder),
        ("trained model", settings.model_folder),
        ("training curves", settings.model_folder / f"fold_{FOLD}" / "progress.png"),
        ("predicted masks", settings.predictions),
        ("predicted classes", settings.predictions / "classification.csv"),
        ("three cases", figure),
    ):
        print(f"  {what:<18} {path}")
    return scores

"""Classification on real data, out of fold: the runs behind ``documentation/classification-evidence.md``.

    python tests/benchmarks/classification_evidence.py prepare acdc DATA WORK
    python tests/benchmarks/classification_evidence.py train acdc WORK --method ours --fold 0

``DATA`` holds the sets ``acdc`` and ``busi`` (nnU-Net raw format with ``labels.csv`` and ``splits_final.json``), ``WORK`` takes datasets,
preprocessed data and models. The tables of every run are kept beside the documentation, so that every figure can be computed again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TABLES = HERE.parents[1] / "documentation" / "classification-evidence"
PLANS = "nnUNetResEncUNetXSReducedPlans"
CONFIGURATION = "2d"
EPOCHS, ITERATIONS, SEED = 40, 50, 1
TRAINERS = {"segmentation": "nnUNetTrainer", "common": "nnUNetTrainerCommonRecipe", "ours": "nnUNetTrainerMultitask"}


@dataclass(frozen=True)
class EvidenceSet:
    """A dataset, and plans that a processor without GPU can train."""

    number: int
    name: str
    classification: dict
    spacing: tuple[float, float]
    patch_size: tuple[int, int]
    batch_size: int

    @property
    def folder(self) -> str:
        return f"Dataset{self.number:03d}_{self.name}"


HEART = ["RV", "MYO", "LV"]
SETS = {
    "acdc": EvidenceSet(
        number=27,
        name="ACDC",
        classification={
            "pathology": {"classes": ["NOR", "MINF", "DCM", "HCM", "RV"], "evidence": HEART},
            "phase": {"classes": ["ED", "ES"], "evidence": HEART},
        },
        spacing=(3.0, 3.0),
        patch_size=(128, 128),
        batch_size=2,
    ),
    # no evidence: the class "normal" has no lesion that could show it
    "busi": EvidenceSet(
        number=30,
        name="BUSI",
        classification={"diagnosis": {"classes": ["normal", "benign", "malignant"]}},
        spacing=(4.0, 4.0),
        patch_size=(128, 160),
        batch_size=2,
    ),
}


def environment(work: Path) -> dict[str, str]:
    """Variables of the commands; one thread, so that several runs side by side do not disturb each other."""
    folders = {name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return {
        **os.environ,
        **folders,
        "nnUNet_extTrainer": str(HERE / "evidence_trainers"),
        "nnUNet_n_proc_DA": "0",
        "OMP_NUM_THREADS": "1",
    }


def run(work: Path, command: str, *arguments: object) -> None:
    """One of the package's commands."""
    program = [str(Path(sys.executable).parent / command), *map(str, arguments)]
    print("$", " ".join([command, *program[1:]]), flush=True)
    subprocess.run(program, env=environment(work), check=True)


def prepare(chosen: EvidenceSet, source: Path, work: Path) -> None:
    """Raw dataset with classes, XS plans with larger voxels, preprocessed cases, the set's own splits."""
    raw = work / "nnUNet_raw" / chosen.folder
    raw.mkdir(parents=True, exist_ok=True)
    for name in ("imagesTr", "labelsTr", "labels.csv", "groups.csv"):
        if (source / name).exists() and not (raw / name).exists():
            (raw / name).symlink_to((source / name).resolve())
    description = json.loads((source / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**description, "classification": chosen.classification}, indent=1))
    run(work, "nnUNetv2_extract_fingerprint", "-d", chosen.number, "--verify_dataset_integrity")
    run(work, "nnUNetv2_plan_experiment", "-d", chosen.number, "-pl", "nnUNetPlannerResEncXS")
    preprocessed = work / "nnUNet_preprocessed" / chosen.folder
    plans = json.loads((preprocessed / "nnUNetResEncUNetXSPlans.json").read_text())
    plans["plans_name"] = PLANS
    plans["configurations"] = {CONFIGURATION: plans["configurations"][CONFIGURATION]}
    plans["configurations"][CONFIGURATION].update(
        data_identifier=f"{PLANS}_{CONFIGURATION}",
        spacing=list(chosen.spacing),
        patch_size=list(chosen.patch_size),
        batch_size=chosen.batch_size,
    )
    (preprocessed / f"{PLANS}.json").write_text(json.dumps(plans, indent=1))
    run(work, "nnUNetv2_preprocess", "-d", chosen.number, "-plans_name", PLANS, "-c", CONFIGURATION, "-np", 1)
    shutil.copy(source / "splits_final.json", preprocessed / "splits_final.json")


def train(key: str, work: Path, method: str, fold: int) -> None:
    """Train one method on one fold with the package's command and keep its tables; nothing if they exist."""
    chosen, kept = SETS[key], TABLES / key / method / f"fold_{fold}"
    if (kept / "dice.csv").exists():
        return
    trainer = TRAINERS[method]
    refit = ["--head_refit", "none"] if method == "ours" else []
    run(
        work, "nnUNetv2_train", chosen.number, CONFIGURATION, fold, "-tr", trainer, "-p", PLANS, "-device", "cpu",
        "--epochs", EPOCHS, "--iterations_per_epoch", ITERATIONS, "--seed", SEED, "--c", *refit,
    )  # fmt: skip
    validation = work / "nnUNet_results" / chosen.folder / f"{trainer}__{PLANS}__{CONFIGURATION}" / f"fold_{fold}" / "validation"
    kept.mkdir(parents=True, exist_ok=True)
    if (validation / "classification.csv").exists():
        shutil.copy(validation / "classification.csv", kept / "classification.csv")
    write_dice(validation / "summary.json", kept / "dice.csv")


def write_dice(summary_file: Path, table: Path) -> None:
    """Dice by case and structure; empty where neither annotation nor prediction has it."""
    cases = json.loads(summary_file.read_text())["metric_per_case"]
    structures = list(cases[0]["metrics"])
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["identifier", *structures])
        for case in cases:
            identifier = Path(case["prediction_file"]).name.split(".")[0]
            values = [case["metrics"][structure]["Dice"] for structure in structures]
            writer.writerow([identifier, *("" if value is None or value != value else f"{value:.6f}" for value in values)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare", help="dataset, plans and preprocessed cases")
    command.add_argument("set", choices=SETS)
    command.add_argument("data", type=Path)
    command.add_argument("work", type=Path)
    command = commands.add_parser("train", help="one method on one fold")
    command.add_argument("set", choices=SETS)
    command.add_argument("work", type=Path)
    command.add_argument("--method", choices=TRAINERS, required=True)
    command.add_argument("--fold", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(SETS[arguments.set], arguments.data / arguments.set, arguments.work.resolve())
    else:
        train(arguments.set, arguments.work.resolve(), arguments.method, arguments.fold)


if __name__ == "__main__":
    main()

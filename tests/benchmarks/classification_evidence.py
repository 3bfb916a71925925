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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

HERE = Path(__file__).parent
TABLES = HERE.parents[1] / "documentation" / "classification-evidence"
PLANS = "nnUNetResEncUNetXSReducedPlans"
CONFIGURATION = "2d"
EPOCHS, ITERATIONS, SEED = 40, 50, 1
TRAINERS = {
    "segmentation": "nnUNetTrainer",
    "common": "nnUNetTrainerCommonRecipe",
    "ours": "nnUNetTrainerMultitask",
    "weight_0.03": "nnUNetTrainerWeight003",
    "weight_0.1": "nnUNetTrainerWeight01",
    "all_stages": "nnUNetTrainerAllStages",
    "without_evidence_weights": "nnUNetTrainerWithoutEvidenceWeights",
}
PATCHES = "refit_on_patches"


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
    refit = [] if method in ("segmentation", "common") else ["--head_refit", "none"]
    run(
        work, "nnUNetv2_train", chosen.number, CONFIGURATION, fold, "-tr", trainer, "-p", PLANS, "-device", "cpu",
        "--epochs", EPOCHS, "--iterations_per_epoch", ITERATIONS, "--seed", SEED, "--c", *refit,
    )  # fmt: skip
    validation = work / "nnUNet_results" / chosen.folder / f"{trainer}__{PLANS}__{CONFIGURATION}" / f"fold_{fold}" / "validation"
    kept.mkdir(parents=True, exist_ok=True)
    if (validation / "classification.csv").exists():
        shutil.copy(validation / "classification.csv", kept / "classification.csv")
    write_dice(validation / "summary.json", kept / "dice.csv")


def refit_on_patches(key: str, work: Path, fold: int) -> None:
    """Heads refitted on patches in a copy of a finished training of ``ours``; their answers are kept. Nothing if they are."""
    chosen, kept = SETS[key], TABLES / key / PATCHES / f"fold_{fold}"
    if (kept / "classification.csv").exists():
        return
    model = Path(chosen.folder, f"{TRAINERS['ours']}__{PLANS}__{CONFIGURATION}")
    source, copied = work / "nnUNet_results" / model, work / PATCHES / "nnUNet_results" / model
    shutil.rmtree(copied / f"fold_{fold}", ignore_errors=True)
    copied.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.json"):
        shutil.copy(file, copied)
    shutil.copytree(source / f"fold_{fold}", copied / f"fold_{fold}", ignore=shutil.ignore_patterns("validation"))
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        if not (work / PATCHES / name).exists():
            (work / PATCHES / name).symlink_to((work / name).resolve())
    run(
        work / PATCHES, "nnUNetv2_train", chosen.number, CONFIGURATION, fold, "-tr", TRAINERS["ours"], "-p", PLANS, "-device", "cpu",
        "--epochs", EPOCHS, "--iterations_per_epoch", ITERATIONS, "--seed", SEED, "--refit_heads", "--head_refit", "patches",
    )  # fmt: skip
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(copied / f"fold_{fold}" / "validation" / "classification.csv", kept / "classification.csv")


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


# --- features of finished encoders, for everything that needs no training of the network


def finished_training(key: str, work: Path, method: str, fold: int) -> nnUNetTrainer:
    """The trainer of a method with its final weights."""
    import torch

    from nnunetv2.run.run_training import get_trainer_from_args

    os.environ.update(environment(work))
    trainer = get_trainer_from_args(SETS[key].number, CONFIGURATION, fold, TRAINERS[method], PLANS, device=torch.device("cpu"))
    trainer.disable_checkpointing = True
    trainer.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    return trainer


def feature_folder(key: str, work: Path, method: str, fold: int) -> Path:
    """Where the features of one encoder are kept."""
    return work / "features" / key / method / f"fold_{fold}"


def extract(key: str, work: Path, method: str, fold: int, copies: int) -> None:
    """Keep what heads can see of every case: features of all encoder stages and the answers of the joint heads by tile, the measures.

    Args:
        key: Set.
        work: Folder of the runs; the arrays go to ``features`` there.
        method: Whose encoder; that of ``segmentation`` has no joint heads.
        fold: Whose encoder.
        copies: Views of every training case with other intensities, beside the case as it is.
    """
    import numpy as np
    import torch

    from nnunetv2.inference.morphometry import morphometry_names
    from nnunetv2.network_architecture.classification_heads import CaseHead, HeadDescription, encoder_channels
    from nnunetv2.network_architecture.joint_network import JointNetwork
    from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
    from nnunetv2.training.head_refit import foreground_structures, other_intensities
    from nnunetv2.training.nnUNetTrainer.case_validation import predictor_of, segmentation_at_full_resolution
    from nnunetv2.utilities.compilation import unwrapped_network
    from nnunetv2.utilities.label_handling.classification_labels import classification_tasks

    target = feature_folder(key, work, method, fold)
    target.mkdir(parents=True, exist_ok=True)
    trainer = finished_training(key, work, method, fold)
    network = trainer.segmentation_network() if hasattr(trainer, "segmentation_network") else unwrapped_network(trainer.network)
    labels = trainer.dataset_json["labels"]
    structures = foreground_structures(labels)
    channels = encoder_channels(network)
    heads, tasks = dict(getattr(trainer, "heads", {})), classification_tasks(trainer.dataset_json)
    some_task = replace(next(iter(tasks.values())), evidence=tuple(structures))
    for pooling in ("mean_max", "evidence"):
        description = HeadDescription(
            task=some_task,
            pooling=pooling,
            stages=tuple(range(len(channels))),
            level="case",
            evidence=PredictedEvidence.from_labels(tuple(structures), labels),
            structures=structures,
            measures=tuple(morphometry_names(list(structures), trainer.num_input_channels)),
        )
        heads[f"vector_{pooling}"], tasks[f"vector_{pooling}"] = CaseHead(description, channels), some_task
    predictor = predictor_of(trainer, JointNetwork(network, heads))
    predictor.classification_tasks = {name: task for name, task in tasks.items() if name in heads}
    training, validation = trainer.get_tr_and_val_datasets()
    with segmentation_at_full_resolution(trainer), torch.inference_mode():
        for dataset, views in ((validation, 1), (training, 1 + copies)):
            for number, identifier in enumerate(dataset.identifiers):
                data, _, _, properties = dataset.load_case(identifier)
                image = torch.from_numpy(np.asarray(data[:]))
                for view in range(views):
                    file = target / f"{identifier}_{view}.npz"
                    if file.exists():
                        continue
                    seen = image if view == 0 else other_intensities(image, SEED, number, view)
                    votes = predictor._new_votes("evidence")
                    logits = predictor._predict_sliding_window(seen, votes)
                    arrays = {name: np.stack(vote.values).astype(np.float32) for name, vote in votes._votes.items()}
                    np.savez(
                        file,
                        evidence_mass=np.asarray(votes._votes["vector_mean_max"].evidence),
                        measures=predictor._measures(predictor._map_to_measure(logits), seen, properties)["vector_mean_max"],
                        channels=np.array(channels),
                        **arrays,
                    )


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
    command.add_argument("--method", choices=(*TRAINERS, PATCHES), required=True)
    command.add_argument("--fold", type=int, required=True)
    command = commands.add_parser("extract", help="features of the encoder of one fold")
    command.add_argument("set", choices=SETS)
    command.add_argument("work", type=Path)
    command.add_argument("--fold", type=int, required=True)
    command.add_argument("--method", choices=TRAINERS, default="ours")
    command.add_argument("--copies", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(SETS[arguments.set], arguments.data / arguments.set, arguments.work.resolve())
    elif arguments.command == "train" and arguments.method == PATCHES:
        refit_on_patches(arguments.set, arguments.work.resolve(), arguments.fold)
    elif arguments.command == "train":
        train(arguments.set, arguments.work.resolve(), arguments.method, arguments.fold)
    else:
        extract(arguments.set, arguments.work.resolve(), arguments.method, arguments.fold, arguments.copies)


if __name__ == "__main__":
    main()

"""Classes of the phantom under difficulties: missing labels, imbalance, lesions that few patches show. Does any head fall to one class?

    python tests/benchmarks/robustness.py run WORK --difficulty imbalance --seed 0
    python tests/benchmarks/robustness.py summary

All runs but ``demo`` start from one short training of ``nnUNetTrainer`` on other phantoms, which the first of them makes. ``run`` keeps the
class tables of the held-out cases beside the documentation, from which ``summary`` counts and scores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nnunetv2.demo.phantom import LABELS, SUBTYPES, PhantomCase, simulate_case, write_phantom_dataset
from nnunetv2.demo.walkthrough import CONFIGURATION, DATASET_NAME, PLANNER, PLANS, TRAINER, DemoSettings
from nnunetv2.evaluation.classification_metrics import task_report
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv

HERE = Path(__file__).parent
TABLES = HERE.parents[1] / "documentation" / "classification-evidence" / "phantom"
TASK = ClassificationTask.from_dict("subtype", {"classes": list(SUBTYPES)})
HEADS = ("refit", "joint")
SEGMENTATION_SEED = 1000
TEST_CASES = 30


@dataclass(frozen=True)
class Difficulty:
    """What is wrong with the training cases."""

    unlabelled_fraction: float = 0.1
    training_subtypes: tuple[str, ...] = SUBTYPES
    num_training: int = 60
    simulate: Callable[[str, np.random.Generator], PhantomCase] = simulate_case
    patch_size: tuple[int, int, int] | None = None  # None: as planned
    trainer: str = TRAINER
    epochs: int = 6
    iterations: int = 60


DIFFICULTIES = {
    "missing_10": Difficulty(),
    "missing_60": Difficulty(unlabelled_fraction=0.6, iterations=120),
    # 60 solid, 30 granular and 3 rim: 20 to 1
    "imbalance": Difficulty(unlabelled_fraction=0, training_subtypes=("solid",) * 20 + ("granular",) * 10 + ("rim",), num_training=93),
    "rare_lesion": Difficulty(
        simulate=partial(simulate_case, shape=(12, 128, 128), organ_range_mm=(3, 60, 60)),
        patch_size=(12, 16, 16),
        trainer="nnUNetTrainerMultitaskNoMirroring",  # an eighth of the time for hundreds of tiles by case
        iterations=120,
    ),
}


def environment(folder: Path) -> dict[str, str]:
    """Variables of the commands; one thread, so that several runs side by side do not disturb each other."""
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return {**os.environ, **folders, "nnUNet_extTrainer": str(HERE / "evidence_trainers"), "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}


def command(folder: Path, name: str, *arguments: object) -> None:
    """One of the package's commands."""
    program = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    print("$", " ".join([name, *program[1:]]), flush=True)
    subprocess.run(program, env=environment(folder), check=True)


def plan(folder: Path, patch_size: tuple[int, int, int] | None = None, checkpoint: Path | None = None) -> None:
    """Plans of the demo and the preprocessed cases; with a patch of its own the network is that of a checkpoint."""
    command(folder, "nnUNetv2_extract_fingerprint", "-d", 1, "--verify_dataset_integrity", "-np", 1)
    command(folder, "nnUNetv2_plan_experiment", "-d", 1, "-pl", PLANNER)
    plans_file = folder / "nnUNet_preprocessed" / DATASET_NAME / f"{PLANS}.json"
    if patch_size:
        plans, others = (json.loads(file.read_text()) for file in (plans_file, checkpoint.parents[1] / "plans.json"))
        plans["configurations"][CONFIGURATION]["patch_size"] = list(patch_size)
        plans["configurations"][CONFIGURATION]["architecture"] = others["configurations"][CONFIGURATION]["architecture"]
        plans_file.write_text(json.dumps(plans, indent=1))
    command(folder, "nnUNetv2_preprocess", "-d", 1, "-plans_name", PLANS, "-c", CONFIGURATION, "-np", 1)


def segmentation_checkpoint(work: Path) -> Path:
    """The checkpoint that the runs start from, trained once."""
    folder = work / "segmentation"
    model = folder / "nnUNet_results" / DATASET_NAME / f"nnUNetTrainer__{PLANS}__{CONFIGURATION}"
    checkpoint = model / "fold_all" / "checkpoint_final.pth"
    if checkpoint.exists():
        return checkpoint
    shutil.rmtree(folder, ignore_errors=True)
    write_phantom_dataset(folder / "nnUNet_raw" / DATASET_NAME, num_training=60, num_test=0, seed=SEGMENTATION_SEED)
    plan(folder)
    command(
        folder, "nnUNetv2_train", 1, CONFIGURATION, "all", "-tr", "nnUNetTrainer", "-p", PLANS, "-device", "cpu",
        "--epochs", 20, "--iterations_per_epoch", 80, "--seed", SEGMENTATION_SEED,
    )  # fmt: skip
    return checkpoint


def run(work: Path, name: str, seed: int) -> None:
    """Train with classes on cases with the difficulty, predict the held-out cases with both sets of heads; nothing if the tables exist."""
    if all(table_of(name, seed, heads).exists() for heads in HEADS):
        return
    difficulty, folder = DIFFICULTIES[name], work / f"{name}_{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    dataset = folder / "nnUNet_raw" / DATASET_NAME
    write_phantom_dataset(
        dataset,
        num_training=difficulty.num_training,
        num_test=TEST_CASES,
        seed=seed,
        unlabelled_fraction=difficulty.unlabelled_fraction,
        training_subtypes=difficulty.training_subtypes,
        simulate=difficulty.simulate,
    )
    checkpoint = segmentation_checkpoint(work)
    plan(folder, difficulty.patch_size, checkpoint)
    if difficulty.patch_size:
        print(f"{lesion_share(dataset, difficulty.patch_size):.1%} of the patches at random places show the lesion", flush=True)
    command(
        folder, "nnUNetv2_train", 1, CONFIGURATION, 0, "-tr", difficulty.trainer, "-p", PLANS, "-device", "cpu", "--seed", seed,
        "--epochs", difficulty.epochs, "--iterations_per_epoch", difficulty.iterations,
        "-pretrained_weights", checkpoint,
    )  # fmt: skip
    for heads in HEADS:
        predict(folder, folder / heads, heads, difficulty.trainer)
        keep(folder / heads, name, seed, heads)


def demo(work: Path, seed: int) -> None:
    """The demo itself, and its held-out cases with the joint heads too."""
    if all(table_of("demo", seed, heads).exists() for heads in HEADS):
        return
    settings = DemoSettings(folder=work / f"demo_{seed}", seed=seed)
    shutil.rmtree(settings.folder, ignore_errors=True)
    command(settings.folder, "nnUNetv2_demo", "-o", settings.folder, "--seed", seed, "-device", "cpu")
    keep(settings.predictions, "demo", seed, "refit")
    predict(settings.folder, settings.folder / "joint", "joint")
    keep(settings.folder / "joint", "demo", seed, "joint")


def predict(folder: Path, output: Path, heads: str, trainer: str = TRAINER) -> None:
    images = folder / "nnUNet_raw" / DATASET_NAME / "imagesTs"
    command(
        folder, "nnUNetv2_predict", "-i", images, "-o", output, "-d", 1, "-c", CONFIGURATION, "-f", 0, "-tr", trainer, "-p", PLANS,
        "-device", "cpu", "--save_cls", "--cls_heads", heads,
    )  # fmt: skip


def keep(predictions: Path, name: str, seed: int, heads: str) -> None:
    table_of(name, seed, heads).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(predictions / "classification.csv", table_of(name, seed, heads))


def table_of(name: str, seed: int, heads: str) -> Path:
    return TABLES / f"{name}_{seed}_{heads}.csv"


def lesion_share(dataset: Path, patch_size: tuple[int, int, int], draws: int = 200) -> float:
    """Share of the patches at places drawn evenly over the training cases in which a voxel belongs to the lesion."""
    import SimpleITK as sitk

    rng, hits = np.random.default_rng(0), []
    for file in sorted((dataset / "labelsTr").iterdir()):
        lesion = sitk.GetArrayFromImage(sitk.ReadImage(str(file))) == LABELS["lesion"]
        for _ in range(draws):
            first = [rng.integers(size - patch + 1) for size, patch in zip(lesion.shape, patch_size, strict=True)]
            hits.append(lesion[tuple(slice(f, f + p) for f, p in zip(first, patch_size, strict=True))].any())
    return float(np.mean(hits))


def summary() -> None:
    """One line a run: classes that the held-out cases were given, and the scores."""
    print("| difficulty | seed | heads | cases by predicted class | macro_f1 | auroc |\n| --- | --- | --- | --- | --- | --- |")
    collapsed = 0
    for file in sorted(TABLES.glob("*.csv")):
        name, seed, heads = file.stem.rsplit("_", 2)
        table = read_classification_csv(file, {TASK.name: TASK})
        counts, scores = counts_and_scores({case: row[TASK.name] for case, row in table.items()})
        collapsed += max(counts.values()) == len(table)
        predicted = ", ".join(f"{number} {subtype}" for subtype, number in counts.items())
        print(f"| {name} | {seed} | {heads} | {predicted} | {scores['macro_f1']:.3f} | {scores['auroc']:.3f} |")
    print(f"\n{collapsed} of these give every case the same class.")


def counts_and_scores(probabilities: Mapping[str, np.ndarray]) -> tuple[dict[str, int], Mapping[str, float]]:
    """Held-out cases by predicted class, and their scores; the cases' subtypes stand in turn."""
    cases = sorted(probabilities)
    targets = [index % len(SUBTYPES) for index in range(len(cases))]
    decided = [int(np.argmax(probabilities[case])) for case in cases]
    counts = {subtype: decided.count(index) for index, subtype in enumerate(SUBTYPES)}
    return counts, task_report(TASK, targets, [probabilities[case] for case in cases])["scores"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    subparser = commands.add_parser("run", help="one difficulty, or the demo, with one seed")
    subparser.add_argument("work", type=Path)
    subparser.add_argument("--difficulty", choices=("demo", *DIFFICULTIES), required=True)
    subparser.add_argument("--seed", type=int, required=True)
    commands.add_parser("summary", help="table of all runs")
    arguments = parser.parse_args()
    if arguments.command == "summary":
        summary()
    elif arguments.difficulty == "demo":
        demo(arguments.work.resolve(), arguments.seed)
    else:
        run(arguments.work.resolve(), arguments.difficulty, arguments.seed)


if __name__ == "__main__":
    main()

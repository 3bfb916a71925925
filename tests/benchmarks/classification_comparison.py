"""What heads make of finished encoders, a baseline without a joint network, and the tables of ``documentation/classification-evidence.md``.

    python tests/benchmarks/classification_comparison.py heads acdc DATA WORK
    python tests/benchmarks/classification_comparison.py tree_noise acdc DATA WORK
    python tests/benchmarks/classification_comparison.py baseline acdc DATA WORK
    python tests/benchmarks/classification_comparison.py calibrate acdc DATA
    python tests/benchmarks/classification_comparison.py summary acdc DATA

``heads`` and ``tree_noise`` need what ``classification_evidence.py extract`` keeps, ``baseline`` the masks of the method ``segmentation``; ``calibrate``
and ``summary`` only the tables beside the documentation.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from classification_evidence import CONFIGURATION, PATCHES, PLANS, SEED, SETS, TABLES, TRAINERS, feature_folder

from nnunetv2.evaluation.bootstrap import bootstrap_intervals, percentile_interval, resampling_weights
from nnunetv2.evaluation.calibration_fit import fit_calibration
from nnunetv2.evaluation.classification_metrics import task_report, weighted_scores
from nnunetv2.inference.case_classification import AGGREGATIONS, aggregate_tiles
from nnunetv2.inference.morphometry import morphometry
from nnunetv2.network_architecture.classification_heads import CaseHead, HeadDescription, default_stages
from nnunetv2.training.case_head_fit import COPIES_OF_A_LEAF, NOISY_COPIES, add_trees, fit_case_head, inner_folds, noisy_copies
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv, write_classification_csv

Table = dict[str, dict[str, np.ndarray]]  # case -> task -> probabilities (K,)
METRICS = ("macro_f1", "balanced_accuracy", "auroc", "log_loss", "ece")
BASELINES = ("random_forest", "extra_trees", "logistic")
PAIRS = (
    ("ours", "common"),
    ("ours", "joint"),
    ("ours", PATCHES),
    *(("ours", baseline) for baseline in BASELINES),
    ("ours", "half_vote_of_trees"),
    ("joint", "common"),
    ("joint", "joint_of_without_evidence_weights"),
    ("ours", "encoder_of_without_evidence_weights_ours"),
)


@dataclass(frozen=True)
class Cases:
    """Labels, groups and folds of a set."""

    key: str
    tasks: dict[str, ClassificationTask]
    labels: dict[str, dict[str, str]]
    groups: dict[str, str]
    splits: list[dict[str, list[str]]]

    @classmethod
    def load(cls, key: str, data: Path) -> Cases:
        folder = data / key
        rows = {row["identifier"]: row for row in csv.DictReader((folder / "labels.csv").open())}
        groups_file = folder / "groups.csv"
        groups = {row["identifier"]: row["group"] for row in csv.DictReader(groups_file.open())} if groups_file.exists() else {}
        tasks = {name: ClassificationTask.from_dict(name, values) for name, values in SETS[key].classification.items()}
        return cls(key, tasks, rows, groups, json.loads((folder / "splits_final.json").read_text()))

    def targets(self, task: str, cases: Sequence[str]) -> list[int]:
        return [self.tasks[task].classes.index(self.labels[case][task]) for case in cases]

    def case_labels(self) -> CaseLabels:
        targets = {case: {name: task.classes.index(row[name]) for name, task in self.tasks.items()} for case, row in self.labels.items()}
        return CaseLabels(self.tasks, targets)

    def groups_of(self, cases: Sequence[str]) -> list[str]:
        return [self.groups.get(case, case) for case in cases]


# --- heads on what was extracted


@dataclass(frozen=True)
class Variant:
    """One way to fit a head of whole cases; the fields start with the defaults of the trainer."""

    pooling: str = "mean_max"
    stages: tuple[int, ...] | None = None
    aggregation: str = "evidence"
    penalty: float = 0.003
    features: bool = True
    measures: bool = True
    trees: int = 200
    chosen_share: bool = True  # of the trees in the vote; else half
    copies: int = 0


OURS = Variant()
VARIANTS = {
    "ours": OURS,
    "without_trees": replace(OURS, trees=0),
    "half_vote_of_trees": replace(OURS, chosen_share=False),
    "features_alone": replace(OURS, measures=False),
    "measures_alone": replace(OURS, features=False),
    "pooling_evidence": replace(OURS, pooling="evidence"),
    "features_alone_pooling_evidence": replace(OURS, pooling="evidence", measures=False),
    "features_alone_aggregation_mean": replace(OURS, aggregation="mean", measures=False),
    **{f"features_alone_stage_{stage}": replace(OURS, stages=(stage,), measures=False) for stage in range(6)},
    "features_alone_all_stages": replace(OURS, stages=tuple(range(6)), measures=False),
    **{f"penalty_{penalty}": replace(OURS, penalty=penalty) for penalty in (0.001, 0.01, 0.03, 0.1, 0.3)},
    **{f"features_alone_penalty_{penalty}": replace(OURS, penalty=penalty, measures=False) for penalty in (0.001, 0.01, 0.03, 0.1, 0.3)},
}
ON_OTHER_ENCODERS = ("ours", "features_alone", "measures_alone", "pooling_evidence", "features_alone_pooling_evidence")


def fit_heads(cases: Cases, work: Path, method: str, folds: Sequence[int]) -> None:
    """Fit every variant on the training cases of each fold and keep its answers on the held-out ones.

    On the encoders of other methods than ``ours`` the variants that this is about, named after the method.
    """
    features = {fold: _Features(feature_folder(cases.key, work, method, fold), cases) for fold in folds}
    if method != "ours":
        for name in ON_OTHER_ENCODERS:
            table: Table = {}
            for fold in folds:
                table.update(_answers(cases, features[fold], cases.splits[fold], VARIANTS[name]))
            _keep(cases, f"encoder_of_{method}_{name}", table)
        return
    for name, variant in VARIANTS.items():
        table = {}
        for fold in folds:
            table.update(_answers(cases, features[fold], cases.splits[fold], variant))
        _keep(cases, name, table)
    for aggregation in AGGREGATIONS:
        table = {}
        for fold in folds:
            for case in cases.splits[fold]["val"]:
                table[case] = {task: features[fold].joint(case, task, aggregation) for task in cases.tasks}
        _keep(cases, "joint" if aggregation == "evidence" else f"joint_aggregation_{aggregation}", table)


class _Features:
    """Arrays of one encoder, each read once."""

    def __init__(self, folder: Path, cases: Cases) -> None:
        self.folder, self.tasks = folder, cases.tasks
        self._read: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def arrays(self, case: str, view: int = 0) -> dict[str, np.ndarray]:
        if (case, view) not in self._read:
            with np.load(self.folder / f"{case}_{view}.npz") as file:
                self._read[case, view] = {name: file[name] for name in file.files}
        return self._read[case, view]

    def channels(self, case: str) -> list[int]:
        return self.arrays(case)["channels"].tolist()

    def joint(self, case: str, task: str, aggregation: str) -> np.ndarray:
        arrays = self.arrays(case)
        mass = arrays["evidence_mass"] if self.tasks[task].evidence else np.zeros(len(arrays[task]))
        return aggregate_tiles(arrays[task].astype(np.float64), mass, aggregation=aggregation, exclusive=True)

    def vector(self, case: str, view: int, variant: Variant, stages: Sequence[int], has_evidence: bool) -> np.ndarray:
        """As the head sees a case: means and maxima of the stages, then the measures."""
        arrays, channels = self.arrays(case, view), self.channels(case)
        tiles = arrays[f"vector_{variant.pooling}"].astype(np.float64)
        mass = arrays["evidence_mass"] if has_evidence else np.zeros(len(tiles))
        pooled = aggregate_tiles(tiles, mass, aggregation=variant.aggregation, exclusive=False)
        first = np.concatenate([[0], np.cumsum(channels)])
        chosen = np.concatenate([np.arange(first[stage], first[stage + 1]) for stage in stages])
        parts = [pooled[chosen], pooled[sum(channels) + chosen]]
        return np.concatenate([*parts, arrays["measures"]] if variant.measures else parts)


def _answers(
    cases: Cases, features: _Features, split: Mapping[str, list[str]], variant: Variant
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    rows: Table = {case: {} for case in split["val"]}
    channels = features.channels(split["val"][0])
    stages = default_stages(len(channels)) if variant.stages is None else variant.stages
    number_of_measures = len(features.arrays(split["val"][0])["measures"]) if variant.measures else 0
    for name, task in cases.tasks.items():
        description = HeadDescription(
            task=task, stages=tuple(stages), level="case", structures={"all": (1,)}, measures=tuple(map(str, range(number_of_measures)))
        )
        head = CaseHead(description, channels)
        views = [(case, view) for view in range(1 + variant.copies) for case in split["train"]]
        vectors = np.stack([features.vector(*view, variant, stages, bool(task.evidence)) for view in views])
        held_out = np.stack([features.vector(case, 0, variant, stages, bool(task.evidence)) for case in split["val"]])
        if not variant.features:
            vectors[:, : vectors.shape[1] - number_of_measures] = held_out[:, : vectors.shape[1] - number_of_measures] = 0
        targets = cases.targets(name, [case for case, _ in views])
        weights = 1 / np.bincount(targets, minlength=task.num_classes)[targets]
        weights *= len(weights) / weights.sum()
        fit_case_head(head, vectors, targets, weights, variant.penalty)
        if number_of_measures and variant.trees:
            folds = (
                inner_folds([case for case, _ in views], name, cases.case_labels(), cases.groups or None) if variant.chosen_share else []
            )
            share = add_trees(head, vectors, targets, weights, penalty=variant.penalty, number=variant.trees, seed=SEED, folds=folds)
            if variant == OURS:
                print(f"{name}: trees have {share:.2f} of the vote")
        with torch.no_grad():
            probabilities = head.case_probabilities(torch.from_numpy(held_out)).numpy().astype(np.float64)
        for case, row in zip(split["val"], probabilities, strict=True):
            rows[case][name] = row
    yield from rows.items()


def tree_noise(cases: Cases, work: Path, folds: Sequence[int]) -> None:
    """How much better structures are measured in cases that the network knows, and what noise on the measures does to the trees."""
    from sklearn.ensemble import ExtraTreesRegressor

    features = {fold: _Features(feature_folder(cases.key, work, "ours", fold), cases) for fold in folds}
    unseen = {case: features[fold].arrays(case)["measures"] for fold in folds for case in cases.splits[fold]["val"]}
    shifts = np.stack([features[fold].arrays(case)["measures"] - unseen[case] for fold in folds for case in cases.splits[fold]["train"]])
    shares = np.nanstd(shifts, axis=0) / np.nanstd(np.stack(list(unseen.values())), axis=0)
    print(f"Known minus unseen, share of the deviation between cases, median over measures: {np.nanmedian(shares):.2f}")
    for task in cases.tasks.values():
        for copies, leaf in ((1, 2), (NOISY_COPIES, COPIES_OF_A_LEAF)):
            scores = []
            for seed in range(3):
                rows = {}
                for fold in folds:
                    split = cases.splits[fold]
                    known, held_out = (
                        np.stack([features[fold].arrays(case)["measures"] for case in split[name]]) for name in ("train", "val")
                    )
                    means = np.nan_to_num(np.nanmean(known, axis=0))
                    known, held_out = (np.where(np.isnan(values), means, values) for values in (known, held_out))
                    targets = cases.targets(task.name, split["train"])
                    weights = np.tile(1 / np.bincount(targets)[targets], copies)
                    forest = ExtraTreesRegressor(200, min_samples_leaf=leaf, random_state=seed)
                    forest.fit(
                        known if copies == 1 else noisy_copies(known, seed),
                        np.tile(np.eye(task.num_classes)[targets], (copies, 1)),
                        weights,
                    )
                    rows.update(zip(split["val"], forest.predict(held_out), strict=True))
                found = task_report(task, cases.targets(task.name, list(rows)), list(rows.values()))["scores"]
                scores.append([found[name] for name in METRICS])
            means = ", ".join(f"{name} {value:.3f}" for name, value in zip(METRICS, np.mean(scores, axis=0), strict=True))
            print(f"{task.name}, trees alone, {'noise' if copies > 1 else 'as measured'}: {means}")


# --- without a joint network


def baseline(cases: Cases, data: Path, work: Path, folds: Sequence[int]) -> None:
    """Masks of nnUNetTrainer, each case predicted by the fold that did not see it, to sizes, shapes and intensities, to three classifiers."""
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    measures = dict(_measures_of_masks(cases, data, work, folds))
    balanced = {"class_weight": "balanced", "random_state": SEED}
    models = {
        "random_forest": lambda: make_pipeline(SimpleImputer(), RandomForestClassifier(500, **balanced)),
        "extra_trees": lambda: make_pipeline(SimpleImputer(), ExtraTreesClassifier(500, min_samples_leaf=2, max_features=None, **balanced)),
        "logistic": lambda: make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(max_iter=5000, **balanced)),
    }
    for name, model in models.items():
        table: Table = {}
        for fold in folds:
            train = [case for case in cases.splits[fold]["train"] if case in measures]
            val = cases.splits[fold]["val"]
            for task in cases.tasks:
                fitted = model().fit([measures[case] for case in train], cases.targets(task, train))
                for case, row in zip(val, fitted.predict_proba([measures[case] for case in val]), strict=True):
                    table.setdefault(case, {})[task] = row
        _keep(cases, name, table)


def _measures_of_masks(cases: Cases, data: Path, work: Path, folds: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    folder = data / cases.key
    description = json.loads((folder / "dataset.json").read_text())
    ending = description["file_ending"]
    structures = {name: (value,) for name, value in description["labels"].items() if value}
    for fold in folds:
        model = work / "nnUNet_results" / SETS[cases.key].folder / f"nnUNetTrainer__{PLANS}__{CONFIGURATION}"
        for case in cases.splits[fold]["val"]:
            mask = model / f"fold_{fold}" / "validation" / f"{case}{ending}"
            reader = determine_reader_writer_from_dataset_json(description, str(mask), verbose=False)()
            image, properties = reader.read_images((str(folder / "imagesTr" / f"{case}_0000{ending}"),))
            image = (image[:1] - image[:1].mean()) / image[:1].std()
            yield case, morphometry(reader.read_seg(str(mask))[0][0].astype(int), image, properties["spacing"], structures)


def calibrate(cases: Cases, names: Sequence[str]) -> None:
    """Calibration of each fold's answers, fitted on those of the other folds."""
    tables = read_tables(cases)
    for name in names:
        calibrated: Table = {}
        for fold in cases.splits:
            others = [case for case in tables[name] if case not in fold["val"]]
            held_out = [case for case in fold["val"] if case in tables[name]]
            for task in cases.tasks.values():
                fitted = fit_calibration(task, cases.targets(task.name, others), [tables[name][case][task.name] for case in others])
                for case in held_out:
                    calibrated.setdefault(case, {})[task.name] = fitted.apply(tables[name][case][task.name])
        _keep(cases, f"{name}_calibrated", calibrated)


# --- tables


def _keep(cases: Cases, name: str, table: Table) -> None:
    path = TABLES / cases.key / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {case: {task: np.round(probabilities, 6) for task, probabilities in row.items()} for case, row in table.items()}
    write_classification_csv(path, cases.tasks, rounded)
    print(path)


def read_tables(cases: Cases) -> dict[str, Table]:
    """All class tables of a set by method; those of trained methods are pooled over the folds."""
    tables = {path.stem: read_classification_csv(path, cases.tasks) for path in sorted((TABLES / cases.key).glob("*.csv"))}
    for method in (*TRAINERS, PATCHES):
        trained: Table = {}
        for path in sorted((TABLES / cases.key / method).glob("fold_*/classification.csv")):
            trained.update(read_classification_csv(path, cases.tasks))
        if trained:
            tables[method if method in ("common", PATCHES) else f"joint_of_{method}"] = trained
    return tables


def read_dice(cases: Cases, method: str) -> dict[str, float]:
    """Mean Dice over structures by case."""
    result = {}
    for path in sorted((TABLES / cases.key / method).glob("fold_*/dice.csv")):
        for row in csv.DictReader(path.open()):
            values = [float(value) for name, value in row.items() if name != "identifier" and value]
            if values:
                result[row["identifier"]] = float(np.mean(values))
    return result


def summary(cases: Cases) -> None:
    """Scores with intervals, and differences of methods on the same cases."""
    tables = read_tables(cases)
    for task in cases.tasks.values():
        print(f"\n### {cases.key}, {task.name}\n\n| method | cases | " + " | ".join(METRICS) + " |\n|" + " --- |" * (2 + len(METRICS)))
        for name in sorted(tables, key=lambda name: (name not in ("common", "joint", "ours", *BASELINES), name)):
            print(f"| {name} | {_scores(cases, task, tables[name])} |")
        for first, second in PAIRS:
            if first in tables and second in tables:
                print(f"\n{first} - {second}, macro_f1: {difference(cases, task, tables[first], tables[second])}")
    dice = {method: read_dice(cases, method) for method in TRAINERS}
    for method, values in dice.items():
        if values:
            print(f"\nDice, {method}: {np.mean(list(values.values())):.3f} ({len(values)} cases)")
            shared = [case for case in values if case in dice["segmentation"]]
            if method != "segmentation" and shared:
                gap = np.array([values[case] - dice["segmentation"][case] for case in shared])
                print(f"difference to segmentation: {gap.mean():+.4f} {_interval(_mean_draws(gap, cases.groups_of(shared)))}")


def _scores(cases: Cases, task: ClassificationTask, table: Table) -> str:
    identifiers = sorted(table)
    targets, rows = cases.targets(task.name, identifiers), [table[case][task.name] for case in identifiers]
    found = task_report(task, targets, rows)["scores"]
    intervals = bootstrap_intervals(task, targets, rows, cases.groups_of(identifiers))["scores"]
    cells = [f"{found[name]:.3f} ({intervals[name]['low']:.3f} to {intervals[name]['high']:.3f})" for name in METRICS]
    return " | ".join([str(len(identifiers)), *cells])


def difference(cases: Cases, task: ClassificationTask, first: Table, second: Table) -> str:
    """Of the macro-F1 on the cases that both have, with its paired interval."""
    identifiers = sorted(set(first) & set(second))
    targets = cases.targets(task.name, identifiers)
    once = np.ones((1, len(identifiers)))
    draws = list(resampling_weights(cases.groups_of(identifiers)))

    def of(weights: np.ndarray) -> np.ndarray:
        rows = ([table[case][task.name] for case in identifiers] for table in (first, second))
        one, other = (weighted_scores(task, targets, probabilities, weights).scores["macro_f1"] for probabilities in rows)
        return one - other

    return f"{of(once)[0]:+.3f} {_interval(np.concatenate([of(weights) for weights in draws]))} on {len(identifiers)} cases"


def _mean_draws(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    return np.concatenate([weights @ values / weights.sum(axis=1) for weights in resampling_weights(groups)])


def _interval(draws: np.ndarray) -> str:
    interval = percentile_interval(draws)
    return f"({interval['low']:+.3f} to {interval['high']:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("heads", "tree_noise", "baseline", "calibrate", "summary"))
    parser.add_argument("set", choices=SETS)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--method", default="ours", help="whose encoders (default: %(default)s)")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    cases = Cases.load(arguments.set, arguments.data)
    if arguments.command == "heads":
        fit_heads(cases, arguments.work, arguments.method, arguments.folds)
    elif arguments.command == "tree_noise":
        tree_noise(cases, arguments.work, arguments.folds)
    elif arguments.command == "baseline":
        baseline(cases, arguments.data, arguments.work, arguments.folds)
    elif arguments.command == "calibrate":
        calibrate(cases, ("ours", "joint"))
    else:
        summary(cases)


if __name__ == "__main__":
    main()

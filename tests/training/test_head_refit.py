"""New heads on a finished encoder: on whole cases, on patches, after a training and alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_datasets import PLANS
from tiny_trainings import CPU, make_trainer, same, weights

from nnunetv2.evaluation.validation_tables import tables_of_other_aggregations
from nnunetv2.inference.predict_from_raw_data import ClassificationOptions, nnUNetPredictor
from nnunetv2.network_architecture.classification_heads import CaseHead, HeadDescription, class_probabilities, class_shares
from nnunetv2.network_architecture.joint_network import JointNetwork
from nnunetv2.run.run_training import run_training
from nnunetv2.training.case_head_fit import add_trees, fit_case_head, grow_trees, inner_folds
from nnunetv2.training.head_refit import (
    case_vectors,
    foreground_structures,
    refit_on_patches,
    unfitted_case_heads,
)
from nnunetv2.training.nnUNetTrainer.case_validation import predictor_of
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv

Folders = dict[str, Path]


def case_head(measures: int = 3, **task: Any) -> CaseHead:
    content = {"classes": ["a", "b", "c"], **task}
    description = HeadDescription(
        task=ClassificationTask.from_dict("subtype", content),
        stages=(0,),
        level="case",
        structures={"lesion": (2,)},
        measures=tuple(f"m{i}" for i in range(measures)),
    )
    return CaseHead(description, [4])


def test_a_linear_head_is_scikit_learns_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    head = case_head()
    targets = rng.integers(0, 3, 60)
    vectors = rng.normal(size=(60, 11)) * rng.uniform(0.1, 100, 11) + targets[:, None] * rng.normal(size=11)
    sample_weights = rng.uniform(0.5, 1.5, 60)
    penalty = 0.03
    fit_case_head(head, vectors, list(targets), sample_weights, penalty)
    inputs = head.standardize(torch.from_numpy(vectors).float()).numpy()
    model = LogisticRegression(C=1 / (penalty * 60), tol=1e-10, max_iter=10000, solver="newton-cg").fit(
        inputs, targets, sample_weight=sample_weights
    )
    found = class_probabilities(head.description.task, head.classify_case(torch.from_numpy(vectors).float())).numpy()
    assert found == pytest.approx(model.predict_proba(inputs), abs=1e-4)


def test_every_block_of_features_has_the_same_weight_and_what_is_missing_counts_as_the_mean() -> None:
    rng = np.random.default_rng(1)
    head = case_head()
    vectors = rng.normal(5, 3, size=(50, 11))
    vectors[::7, 9] = np.nan
    vectors[:, 10] = 4.0  # says nothing
    fit_case_head(head, vectors, list(rng.integers(0, 3, 50)), np.ones(50), 0.1)
    inputs = head.standardize(torch.from_numpy(vectors).float()).numpy()
    variances = inputs.var(axis=0)
    assert variances[:4].sum() == pytest.approx(1, abs=1e-4) and variances[4:8].sum() == pytest.approx(1, abs=1e-4)
    assert variances[8] == pytest.approx(1 / 3, abs=1e-4)
    assert (inputs[::7, 9] == 0).all() and (inputs[:, 10] == 0).all()


@pytest.mark.parametrize("task", [{"type": "ordinal"}, {"type": "multilabel"}, {}])
def test_all_types_of_tasks_learn_what_can_be_told_apart(task: dict[str, str]) -> None:
    rng = np.random.default_rng(2)
    head = case_head(**task)
    classes = np.arange(60) % 3
    vectors = rng.normal(size=(60, 11)) + 8 * classes[:, None] * np.eye(11)[0]
    targets = [np.array([c > 0, c > 1, c == 0], dtype=np.float32) for c in classes] if task.get("type") == "multilabel" else list(classes)
    fit_case_head(head, vectors, targets, np.ones(60), 0.001)
    probabilities = class_probabilities(head.description.task, head.classify_case(torch.from_numpy(vectors).float())).numpy()
    decided = probabilities > 0.5 if task.get("type") == "multilabel" else probabilities.argmax(axis=1)
    assert (decided == np.array(targets)).mean() > 0.95


def test_structures_are_all_but_background_and_ignore() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert foreground_structures(labels) == {"whole": (1, 2), "core": (2,)}


def predicted_rows(trainer: nnUNetTrainerMultitask, heads: str | None, **options: Any) -> dict[str, dict[str, np.ndarray]]:
    """Classes of the validation cases from the model folder on disk, as a user predicts them."""
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), classification_heads=heads)
    _, dataset = trainer.get_tr_and_val_datasets()
    rows = {}
    for identifier in dataset.identifiers:
        data, _, _, properties = dataset.load_case(identifier)
        image = torch.from_numpy(np.asarray(data[:]))
        _, rows[identifier] = predictor.predict_logits_and_classes_from_preprocessed_data(
            image, ClassificationOptions(**options), properties
        )
    return rows


def assert_same_rows(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for identifier, row in first.items():
        for task, values in row.items():
            assert values == pytest.approx(second[identifier][task], abs=1e-6), (identifier, task)


@pytest.fixture(scope="module", params=["cases", "patches"])
def refitted(request: pytest.FixtureRequest, tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> nnUNetTrainerMultitask:
    """A finished training with refitted heads and its validation."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("nnUNet_preprocessed", str(tiny_preprocessed))
        environment.setenv("nnUNet_results", str(tmp_path_factory.mktemp("results")))
        environment.setenv("nnUNet_raw", str(tmp_path_factory.mktemp("raw")))
        environment.setenv("nnUNet_n_proc_DA", "0")
        environment.setenv("nnUNet_def_n_proc", "1")
        trainer = make_trainer(nnUNetTrainerMultitask, tiny_preprocessed)
        trainer.head_refit = request.param
        trainer.refit_augmented_copies = 1
        before = None

        def remember_and_refit(refit: Any = trainer.refit_heads) -> None:
            nonlocal before
            before = weights(trainer)
            refit()

        trainer.refit_heads = remember_and_refit
        trainer.run_training()
        trainer.weights_before_the_refit = before
        trainer.perform_actual_validation()
        return trainer


def test_encoder_decoder_and_joint_heads_stay_as_they_are(refitted: nnUNetTrainerMultitask) -> None:
    assert same(weights(refitted), refitted.weights_before_the_refit)
    checkpoint = load_checkpoint_file(Path(refitted.output_folder, "checkpoint_final.pth"))
    assert same(dict(checkpoint["network_weights"]), refitted.weights_before_the_refit)
    level = checkpoint["refitted_heads"]["classification"]["heads"]["subtype"]["level"]
    assert level == {"cases": "case", "patches": "patch"}[refitted.head_refit]


def test_both_sets_of_heads_are_scored_and_predict_what_the_validation_wrote(refitted: nnUNetTrainerMultitask) -> None:
    validation = Path(refitted.output_folder, "validation")
    summary = json.loads((validation / "classification_summary.json").read_text())
    assert list(summary) == ["refit", "joint"]
    tables = {heads: read_classification_csv(validation / file, refitted.classification_tasks)
              for heads, file in (("refit", "classification.csv"), ("joint", "classification_joint.csv"))}  # fmt: skip
    for heads, table in tables.items():
        assert_same_rows(predicted_rows(refitted, heads), table)
    assert_same_rows(predicted_rows(refitted, None), tables["refit"])
    first = next(iter(tables["refit"]))
    assert any(not np.allclose(tables["refit"][first][task], tables["joint"][first][task]) for task in refitted.classification_tasks)


def test_the_validation_also_keeps_other_votes_of_the_tiles(refitted: nnUNetTrainerMultitask) -> None:
    """Of heads that classify tiles, under the names by which nnUNetv2_find_best_configuration knows them."""
    validation = Path(refitted.output_folder, "validation")
    sets = ("joint",) if refitted.head_refit == "cases" else ("joint", "refit")
    expected = {f"{heads}_{vote}" for heads in sets for vote in ("mean", "max", "top3")}
    assert set(tables_of_other_aggregations(validation, refitted.classification_tasks, ("joint", "refit"))) == expected
    for vote in ("mean", "max"):
        table = read_classification_csv(validation / f"classification_joint_{vote}.csv", refitted.classification_tasks)
        assert_same_rows(predicted_rows(refitted, "joint", aggregation=vote), table)
    (validation / "classification_other.csv").write_text("of heads that are gone")
    refitted.perform_actual_validation()
    assert not (validation / "classification_other.csv").exists()


def test_augmented_copies_are_further_views_with_other_intensities(
    refitted: nnUNetTrainerMultitask,
) -> None:
    if refitted.head_refit != "cases":
        return
    predictor = predictor_of(refitted, JointNetwork(refitted.segmentation_network(), refitted.refitted_heads))
    predictor.classification_tasks = dict(refitted.classification_tasks)
    once, vectors = case_vectors(refitted, predictor, 0)
    twice, more = case_vectors(refitted, predictor, 1)
    assert twice == [name for name in once for _ in range(2)]
    for task, rows in vectors.items():
        np.testing.assert_array_equal(more[task][::2], rows)
        # Not all: as in training a transform is drawn with a probability, and the network's norms undo some of them.
        assert any(not np.allclose(a, b, equal_nan=True) for a, b in zip(more[task][::2], more[task][1::2], strict=True))
    again = case_vectors(refitted, predictor, 1)[1]
    assert all(np.array_equal(again[task], more[task], equal_nan=True) for task in more)


def test_a_continued_training_has_the_same_refitted_heads(refitted: nnUNetTrainerMultitask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", refitted.preprocessed_dataset_folder_base.rsplit("/", 1)[0])
    monkeypatch.setenv("nnUNet_results", str(Path(refitted.output_folder_base).parents[1]))
    again = make_trainer(nnUNetTrainerMultitask, Path(refitted.preprocessed_dataset_folder_base).parent)
    again.disable_checkpointing = True
    again.num_epochs = refitted.num_epochs
    again.load_checkpoint(str(Path(refitted.output_folder, "checkpoint_final.pth")))
    again.head_refit = other = "patches" if refitted.head_refit == "cases" else "cases"
    again.run_training()
    for name, head in refitted.refitted_heads.items():
        assert same(dict(head.state_dict()), dict(again.refitted_heads[name].state_dict()))
    assert f"--refit_heads --head_refit {other} in place of --c" in Path(again.log_file).read_text()


def test_what_heads_of_whole_cases_cannot_do_is_said(refitted: nnUNetTrainerMultitask) -> None:
    if refitted.head_refit != "cases":
        assert predicted_rows(refitted, "refit", aggregation="max")
        return
    with pytest.raises(ValueError, match="classify whole cases.*--cls_heads joint"):
        predicted_rows(refitted, "refit", aggregation="max")
    with pytest.raises(ValueError, match="look at the predicted segmentation"):
        predicted_rows(refitted, "refit", only=True, aggregation="mean")


def test_heads_can_be_put_onto_a_plain_training(tiny_training: Folders) -> None:
    plain = make_trainer(nnUNetTrainer, tiny_training["preprocessed"])
    plain.run_training()
    source = Path(plain.output_folder, "checkpoint_final.pth")
    options = {"pretrained_weights": str(source), "only_refit_heads": True, "seed": 0, "device": CPU}
    run_training(1, "3d_fullres", 0, "nnUNetTrainerMultitask", PLANS, **options)
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    segmentation = {key: value for key, value in weights(trainer).items() if not key.startswith("classification_heads.")}
    assert same(segmentation, weights(plain))
    summary = load_json(Path(trainer.output_folder, "validation", "classification_summary.json"))
    assert list(summary) == ["refit"]  # joint heads were never trained, so they say nothing
    with pytest.raises(ValueError, match="has no heads 'joint'"):
        predicted_rows(trainer, "joint")
    with pytest.raises(FileExistsError, match="holds a finished training"):
        run_training(1, "3d_fullres", 0, "nnUNetTrainerMultitask", PLANS, **options)


def test_a_refit_without_a_finished_training_or_heads_is_refused(tiny_training: Folders) -> None:
    with pytest.raises(FileNotFoundError, match="--refit_heads needs the finished training"):
        run_training(1, "3d_fullres", 0, "nnUNetTrainerMultitask", PLANS, only_refit_heads=True, device=CPU)
    with pytest.raises(ValueError, match="no classification heads to refit"):
        run_training(2, "3d_fullres", 0, "nnUNetTrainer", PLANS, only_refit_heads=True, device=CPU)


def test_weights_of_another_network_are_refused(tiny_training: Folders, tmp_path: Path) -> None:
    torch.save({"network_weights": {"encoder.nothing": torch.zeros(1)}}, tmp_path / "other.pth")
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.initialize()
    with pytest.raises(ValueError, match="do not fit the segmentation network"):
        trainer.load_segmentation(str(tmp_path / "other.pth"))


@pytest.mark.parametrize("task", [{"type": "ordinal"}, {"type": "multilabel"}, {}])
def test_trees_vote_beside_the_linear_layer_on_what_it_cannot_tell_apart(task: dict[str, str], tmp_path: Path) -> None:
    """Classes by the product of two measures, of which a line sees nothing."""
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(240, 11))
    classes = (vectors[:, 8] * vectors[:, 9] > 0).astype(int) + (vectors[:, 8] * vectors[:, 9] > 0.5)
    vectors[::9, 10] = np.nan
    multilabel = task.get("type") == "multilabel"
    targets = [np.array([c > 0, c > 1, c == 0], dtype=np.float32) for c in classes] if multilabel else list(classes)
    seen, held_out = slice(0, 160), slice(160, None)
    head = case_head(**task)
    fit_case_head(head, vectors[seen], targets[seen], np.ones(160), 0.1)
    grow_trees(head, vectors[seen], targets[seen], np.ones(160), 100, seed=0)

    def right(probabilities: torch.Tensor) -> float:
        decided = probabilities.numpy() >= 0.5 if multilabel else probabilities.argmax(dim=1).numpy()
        return (decided == np.array(targets[held_out])).mean()

    inputs = torch.from_numpy(vectors[held_out]).float()
    linear = class_probabilities(head.description.task, head.classify_case(inputs))
    both = head.case_probabilities(inputs)
    assert right(both) > right(linear) + 0.1
    assert head.tree_share == 0.5
    torch.testing.assert_close(2 * both - linear, class_shares(head.description.task, head.trees(head.measures_of(inputs))))
    if not multilabel:
        torch.testing.assert_close(both.sum(dim=1), torch.ones(len(both)))
    assert both.min() >= 0
    # and again from what a checkpoint holds
    copy = CaseHead(HeadDescription.from_dict(head.description.task, head.description.to_dict()), [4])
    copy.load_state_dict(head.state_dict())
    assert torch.equal(copy.case_probabilities(inputs), both)
    copy.load_state_dict({name: tensor for name, tensor in head.state_dict().items() if name != "tree_share"})  # older
    assert torch.equal(copy.case_probabilities(inputs), both)


def votes_of_two(share_of_noise: float) -> tuple[CaseHead, np.ndarray, list[int]]:
    """60 cases whose classes follow the sign of a product, or the features; and a head that is fitted to them."""
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(60, 11))
    by_trees = (vectors[:, 8] * vectors[:, 9] > 0).astype(int)
    by_line = (vectors[:, 0] + vectors[:, 1] > 0).astype(int)
    targets = list(np.where(rng.uniform(size=60) < share_of_noise, by_line, by_trees))
    head = case_head(classes=["a", "b"])
    fit_case_head(head, vectors, targets, np.ones(60), 0.01)
    return head, vectors, targets


def folds_of(targets: list[int], groups: dict[str, str] | None = None, views: int = 1) -> list[tuple[list[int], list[int]]]:
    names = [f"case_{i}" for i in range(len(targets))]
    labels = CaseLabels(
        {"subtype": ClassificationTask.from_dict("subtype", {"classes": ["a", "b"]})},
        {name: {"subtype": target} for name, target in zip(names, targets, strict=True)},
    )
    return inner_folds(names * views, "subtype", labels, groups)


@pytest.mark.parametrize(("share_of_noise", "low", "high"), [(0.0, 0.8, 1.0), (1.0, 0.0, 0.3)])
def test_who_answers_unseen_cases_better_has_more_of_the_vote(share_of_noise: float, low: float, high: float) -> None:
    head, vectors, targets = votes_of_two(share_of_noise)
    options = {"penalty": 0.01, "number": 30, "seed": 0}
    share = add_trees(head, vectors, targets, np.ones(60), folds=folds_of(targets), **options)
    assert low < share < high
    inputs = torch.from_numpy(vectors).float()
    linear = class_probabilities(head.description.task, head.classify_case(inputs))
    trees = head.trees(head.measures_of(inputs))
    torch.testing.assert_close(head.case_probabilities(inputs), share * trees + (1 - share) * linear)
    # nothing else of the head is different: its linear layer has seen all cases
    again, _, _ = votes_of_two(share_of_noise)
    assert same(dict(again.output.state_dict()), dict(head.output.state_dict()))
    # without cases to choose by
    assert add_trees(again, vectors, targets, np.ones(60), folds=[], **options) == 0.5


def test_inner_folds_keep_groups_and_views_together_and_hold_out_every_case_once() -> None:
    targets = [0, 0, 1, 1] * 5
    groups = {f"case_{i}": f"patient_{i // 2}" for i in range(20)}
    folds = folds_of(targets, groups, views=2)
    assert len(folds) == 5
    assert sorted(row for _, held_out in folds for row in held_out) == list(range(40))
    for training, held_out in folds:
        assert sorted(training + held_out) == list(range(40))
        assert not {row % 20 // 2 for row in training} & {row % 20 // 2 for row in held_out}
        assert {targets[row % 20] for row in held_out} == {0, 1}


def test_a_case_without_a_group_is_one_of_its_own_in_inner_folds() -> None:
    folds = folds_of([0, 1] * 5, {"case_0": "a", "case_1": "a"})
    assert sorted(row for _, held_out in folds for row in held_out) == list(range(10))


@pytest.mark.parametrize("targets", [[0] * 9 + [1], [0, 1], [0]])
def test_without_two_groups_of_every_class_there_are_no_inner_folds(targets: list[int]) -> None:
    assert folds_of(targets) == []


def test_nothing_of_a_fit_depends_on_the_random_numbers_drawn_before() -> None:
    rng = np.random.default_rng(5)
    vectors, targets = rng.normal(size=(40, 11)), list(rng.integers(0, 3, 40))
    fitted = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        fitted.append(case_head())
        fit_case_head(fitted[-1], vectors, targets, np.ones(40), 0.1)
    assert same(dict(fitted[0].state_dict()), dict(fitted[1].state_dict()))


def test_a_fitted_head_takes_vectors_of_any_precision() -> None:
    """In its own precision alone: float64 does not exist on every device."""
    rng = np.random.default_rng(6)
    vectors, targets = rng.normal(size=(40, 11)), list(rng.integers(0, 3, 40))
    head = case_head()
    fit_case_head(head, vectors, targets, np.ones(40), 0.1)
    grow_trees(head, vectors, targets, np.ones(40), 10, seed=0)
    assert head.measures_of(torch.from_numpy(vectors)).dtype == torch.float32
    assert torch.equal(head.case_probabilities(torch.from_numpy(vectors)), head.case_probabilities(torch.from_numpy(vectors).float()))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("head_refit", "case", "head_refit is 'case', expected one of cases, patches"),
        ("refit_pooling", "median", "unknown pooling 'median'"),
        ("refit_stages", (0, 9), r"stages \(0, 9\) do not exist"),
    ],
)
@pytest.mark.parametrize("way", ["cases", "patches"])
def test_a_refit_that_is_not_possible_stops_before_the_training(
    way: str, setting: str, value: Any, message: str, tiny_training: Folders
) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.head_refit = way
    setattr(trainer, setting, value)
    with pytest.raises(ValueError, match=message):
        trainer.on_train_start()
    assert trainer.dataloader_train is None


def test_attention_on_cases_looks_where_the_joint_head_learned_to(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.head_pooling = trainer.refit_pooling = "attention"
    trainer.initialize()
    with torch.no_grad():
        for parameter in trainer.head_parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    for name, head in unfitted_case_heads(trainer, with_morphometry=False).items():
        assert same(dict(head.pooling.state_dict()), dict(trainer.heads[name].pooling.state_dict()))


def test_attention_on_cases_without_such_a_joint_head_stops_before_the_training(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.refit_pooling = "attention"
    with pytest.raises(ValueError, match="'attention' over from the head of the joint training.*found 'mean_max'"):
        trainer.on_train_start()
    trainer.head_refit = "patches"  # trains the queries itself
    trainer.check_refit()


def test_a_refit_on_patches_has_the_optimizer_settings_of_the_trainer(tiny_training: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.head_lr, trainer.head_weight_decay = 0.02, 0.03
    trainer.initialize()
    seen = {}

    class Remembered(torch.optim.AdamW):
        def __init__(self, parameters: Any, **settings: float) -> None:
            seen.update(settings)
            super().__init__(parameters, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", Remembered)
    refit_on_patches(trainer, epochs=1)
    assert seen == {"lr": 0.02, "weight_decay": 0.03}


def test_a_task_without_a_labelled_training_case_stops_before_the_training(tiny_training: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    labels = trainer.case_labels()
    first, *others = labels.tasks
    rows = {case: {task: labels.target(case, task) for task in others} | {first: None} for case in labels.rows}
    monkeypatch.setattr(trainer, "case_labels", lambda: CaseLabels(labels.tasks, rows))
    with pytest.raises(ValueError, match=f"Fold 0: no training case has a label for {first}, .*--head_refit none"):
        trainer.on_train_start()


def test_a_continued_training_remembers_whether_heads_are_refitted(tiny_training: Folders, tmp_path: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.head_refit = "none"
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    continued, asked_otherwise = (make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"]) for _ in range(2))
    asked_otherwise.head_refit = "patches"
    for again in (continued, asked_otherwise):
        again.load_checkpoint(str(tmp_path / "c.pth"))
    assert (continued.head_refit, asked_otherwise.head_refit) == ("none", "patches")

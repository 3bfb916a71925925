"""Training of segmentation and classes together."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.helpers.scalar_type import sample_scalar
from fresh_python import loaded_by
from tiny_datasets import SUBTYPE, tiny_case
from tiny_trainings import make_trainer, same, weights

from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.dataloading.batch import Batch
from nnunetv2.training.dataloading.case_sampling import balanced_sampling_probabilities, class_weights
from nnunetv2.training.nnUNetTrainer.epoch_class_scores import ClassRecord, EpochClassScores
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask, nnUNetTrainerMultitask_5epochs
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

Folders = dict[str, Path]


class WithoutClassificationLoss(nnUNetTrainerMultitask):
    maximum_classification_loss_weight = 0.0


def test_with_lambda_0_the_segmentation_is_trained_as_by_nnUNetTrainer(tiny_training: Folders) -> None:
    alone = make_trainer(nnUNetTrainer, tiny_training["preprocessed"])
    joint = make_trainer(WithoutClassificationLoss, tiny_training["preprocessed"])
    # Mirroring differs on purpose where a task is flip-sensitive; the axes that stay are drawn the same.
    joint.classification_tasks = {name: task for name, task in joint.classification_tasks.items() if not task.flip_sensitive_axes}
    for trainer in (alone, joint):
        trainer.run_training()
    segmentation = {key: value for key, value in weights(joint).items() if not key.startswith("classification_heads.")}
    assert same(segmentation, weights(alone))


def test_a_step_changes_the_heads_by_their_own_optimiser(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.on_train_start()
    heads = {id(parameter) for parameter in trainer.head_parameters()}
    in_sgd = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    in_adamw = {id(parameter) for group in trainer.head_optimizer.param_groups for parameter in group["params"]}
    assert heads == in_adamw
    assert not heads & in_sgd
    assert heads | in_sgd == {id(parameter) for parameter in trainer.network.parameters()}
    group = trainer.head_optimizer.param_groups[0]
    assert (type(trainer.head_optimizer), group["lr"], group["weight_decay"]) == (torch.optim.AdamW, 3e-3, 1e-4)

    trainer.on_train_epoch_start()
    before = weights(trainer)
    for _ in range(2):  # λ is 0 in the first step
        result = trainer.train_step(next(trainer.dataloader_train))
    changed = {key for key, value in weights(trainer).items() if not torch.equal(value, before[key])}
    for name in trainer.classification_tasks:
        assert any(key.startswith(f"classification_heads.task_{name}.") for key in changed), name
        assert f"loss_classification_{name}" in result


def stepped(folders: Folders, *, scaled: bool, spoil: Any = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """A trainer after two steps with a loss large enough for both clippings to act, and its weights before them."""
    trainer = make_trainer(nnUNetTrainerMultitask, folders["preprocessed"])
    trainer._classification_steps = 10**6  # λ at its maximum
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    if scaled:
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain_loss, trainer.classification_loss_weight = trainer.loss, lambda: 1000
    trainer.loss = lambda output, target: 1000 * plain_loss(output, target)
    before = weights(trainer)
    for _ in range(2):
        batch = next(trainer.dataloader_train)
        if spoil is not None:
            spoil(trainer, batch)
        trainer.train_step(batch)
    return trainer, before


def changed_parts(trainer: Any, before: dict[str, torch.Tensor]) -> set[str]:
    """Which of ``heads`` and ``segmentation`` have other weights than before; running statistics are no weights."""
    parameters = {key for key, _ in trainer.network.named_parameters()}
    changed = [key for key, value in weights(trainer).items() if key in parameters and not torch.equal(value, before[key])]
    return {"heads" if key.startswith("classification_heads.") else "segmentation" for key in changed}


def test_scaled_gradients_are_clipped_and_applied_as_plain_ones_by_both_optimisers(tiny_training: Folders) -> None:
    plain, _ = stepped(tiny_training, scaled=False)
    scaled, before = stepped(tiny_training, scaled=True)
    assert changed_parts(scaled, before) == {"heads", "segmentation"}
    # A power of two scales without rounding.
    assert same(weights(scaled), weights(plain))
    assert scaled.grad_scaler.get_scale() == 2.0**10


def test_an_overflow_in_a_head_leaves_the_step_of_the_heads_out_and_lowers_the_scale(tiny_training: Folders) -> None:
    def spoil(trainer: Any, _batch: Any) -> None:
        parameter = trainer.head_parameters()[0]
        parameter.register_hook(lambda gradient: gradient * float("inf"))

    trainer, before = stepped(tiny_training, scaled=True, spoil=spoil)
    assert changed_parts(trainer, before) == {"segmentation"}
    assert trainer.grad_scaler.get_scale() == 2.0**8  # halved once per step, not once per optimiser


def test_a_scaled_loss_that_is_no_number_leaves_all_weights_alone(tiny_training: Folders) -> None:
    trainer, before = stepped(tiny_training, scaled=True, spoil=lambda _, batch: batch["data"].fill_(float("nan")))
    assert changed_parts(trainer, before) == set()
    assert trainer.grad_scaler.get_scale() == 2.0**8


def test_under_autocast_the_heads_stay_in_float32_in_training_and_validation(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    seen: dict[str, set[torch.dtype]] = {"features": set(), "vectors": set(), "class logits": set(), "segmentation logits": set()}

    def note_head(_head: Any, inputs: tuple, logits: torch.Tensor) -> None:
        seen["features"].add(inputs[0][0].dtype)
        seen["class logits"].add(logits.dtype)

    def note_hidden(_layer: Any, inputs: tuple, _output: Any) -> None:
        seen["vectors"].add(inputs[0].dtype)

    def note_decoder(_decoder: Any, _inputs: tuple, outputs: list[torch.Tensor]) -> None:
        seen["segmentation logits"].add(outputs[0].dtype)

    trainer.network.decoder.register_forward_hook(note_decoder)
    for head in trainer.heads.values():
        head.register_forward_hook(note_head)
        head.hidden.register_forward_hook(note_hidden)
    batch = next(trainer.dataloader_train)
    losses = [trainer.train_step(batch)["loss"], trainer.train_step(batch)["loss"]]
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        result = trainer.validation_step(next(trainer.dataloader_val))
    half, full = {torch.bfloat16}, {torch.float32}
    assert seen == {"features": half, "vectors": full, "class logits": full, "segmentation logits": half}
    assert np.isfinite([*losses, result["loss"]]).all()
    trainer.on_validation_epoch_end([result])
    assert np.isfinite(trainer.logger.get_value("mean_fg_dice", 0))
    assert all(parameter.dtype == torch.float32 for parameter in trainer.network.parameters())


def test_the_loss_is_the_weighted_sum_of_its_parts(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.classification_loss_weight = lambda: 0.25
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    result = trainer.train_step(next(trainer.dataloader_train))
    parts = sum(float(result[f"loss_classification_{name}"]) for name in trainer.classification_tasks)
    assert result["loss"] == pytest.approx(float(result["loss_segmentation"]) + 0.25 * parts, abs=1e-5)


@pytest.mark.parametrize(("epochs", "warmup_epochs"), [(1000, 25), (100, 10), (5, 0.5)])
def test_lambda_rises_to_a_hundredth_over_the_first_epochs(epochs: int, warmup_epochs: float, tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"], num_epochs=epochs, num_iterations_per_epoch=250)
    assert trainer.classification_loss_weight() == 0
    trainer._classification_steps = round(warmup_epochs * 250 / 2)
    assert trainer.classification_loss_weight() == pytest.approx(0.005, abs=1e-4)
    for steps in (round(warmup_epochs * 250), epochs * 250):
        trainer._classification_steps = steps
        assert trainer.classification_loss_weight() == pytest.approx(0.01)


def test_a_dataset_without_classes_is_told_what_to_add(tiny_training: Folders) -> None:
    with pytest.raises(ValueError, match="(?s)'classification'.*labels.csv.*nnUNetTrainer"):
        make_trainer(nnUNetTrainerMultitask_5epochs, tiny_training["preprocessed"], dataset="Dataset002_Plain")


@pytest.mark.parametrize(("configuration", "allowed"), [("3d_fullres", 2), ("2d", 1)])
def test_flip_sensitive_axes_are_mirrored_neither_in_training_nor_at_prediction(
    configuration: str, allowed: int, tiny_training: Folders
) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"], configuration=configuration)
    trainer.on_train_start()
    # The x axis of the file is the last one of the reader's array.
    x_axis = list(trainer.plans_manager.transpose_forward).index(2) - (1 if configuration == "2d" else 0)
    assert x_axis not in trainer.inference_allowed_mirroring_axes
    assert len(trainer.inference_allowed_mirroring_axes) == allowed
    steps = trainer.dataloader_train.loader.transforms.transforms
    (mirror,) = [step for step in steps if type(step).__name__ == "MirrorTransform"]
    assert tuple(mirror.allowed_axes) == trainer.inference_allowed_mirroring_axes


def test_a_subclass_cannot_bring_flip_sensitive_mirroring_back_by_accident(tiny_training: Folders) -> None:
    class Trainer(nnUNetTrainerMultitask):
        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
            rotation, dummy, size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            self.inference_allowed_mirroring_axes = (0, 1, 2)
            return rotation, dummy, size, (0, 1, 2)

    trainer = make_trainer(Trainer, tiny_training["preprocessed"])
    trainer.on_train_start()
    assert len(trainer.inference_allowed_mirroring_axes) == 2


@pytest.mark.parametrize("rotation", [(-3.0, 3.0), (1.0, 2.0), 2.0, lambda *_, **__: 2.0])
def test_a_subclass_cannot_turn_flip_sensitive_axes_around(rotation: Any, tiny_training: Folders) -> None:
    class Trainer(nnUNetTrainerMultitask):
        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
            _, dummy, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            return rotation, dummy, size, axes

    trainer = make_trainer(Trainer, tiny_training["preprocessed"])
    trainer.on_train_start()
    spatial = trainer.dataloader_train.loader.transforms.transforms[0]
    limit = np.deg2rad(30)
    angles = [sample_scalar(spatial.rotation) for _ in range(20)]
    assert -limit <= min(angles) <= max(angles) <= limit
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])


@pytest.mark.parametrize("balanced", [False, True])
def test_balanced_sampling_is_a_switch_of_the_training_cases_alone(balanced: bool, tiny_training: Folders) -> None:
    class Trainer(nnUNetTrainerMultitask):
        balanced_sampling = balanced

    trainer = make_trainer(Trainer, tiny_training["preprocessed"])
    trainer.on_train_start()
    train, val = trainer.dataloader_train.loader, trainer.dataloader_val.loader
    expected = balanced_sampling_probabilities(train.indices, trainer.case_labels()).tolist() if balanced else None
    found = train.sampling_probabilities
    assert (None if found is None else found.tolist()) == expected
    assert val.sampling_probabilities is None


class Weighted(nnUNetTrainerMultitask):
    class_weights = True


def test_class_weights_come_from_the_training_cases_alone(tiny_training: Folders) -> None:
    trainer = make_trainer(Weighted, tiny_training["preprocessed"])
    trainer.initialize()
    train, held_out = trainer.do_split()
    labels = trainer.case_labels()
    assert set(trainer.classification_loss.class_weights) == {"subtype", "grade", "side"}  # classes of a multilabel task do not compete
    for name, weights_of_task in trainer.classification_loss.class_weights.items():
        targets = [target for case in train if (target := labels.target(case, name)) is not None]
        by_case = [float(weights_of_task[target]) for target in targets]
        assert np.mean(by_case) == pytest.approx(1)
        totals = {target: sum(w for w, t in zip(by_case, targets) if t == target) for target in set(targets)}
        assert len(set(np.round(list(totals.values()), 6))) == 1  # every class counts the same
    everything = class_weights([*train, *held_out], labels)
    assert any(not np.allclose(everything[name], trainer.classification_loss.class_weights[name]) for name in everything)


def test_imbalance_is_corrected_once(tiny_training: Folders) -> None:
    class Twice(Weighted):
        balanced_sampling = True

    with pytest.raises(ValueError, match="balanced_sampling and class_weights.*twice"):
        make_trainer(Twice, tiny_training["preprocessed"])


def test_a_collapsed_head_is_reported_in_the_log(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"], num_epochs=4)
    trainer.initialize()
    labels = trainer.case_labels()
    case_of_side = {labels.target(case, "side"): case for case in labels.rows if labels.target(case, "side") is not None}
    classes = {name: len(task.classes) for name, task in trainer.classification_tasks.items()}
    probabilities = {name: np.eye(number)[0] * 0.9 + 0.1 / number for name, number in classes.items()}
    records = [
        ClassRecord(identifier=case, probabilities=probabilities, evidence=dict.fromkeys(classes, 0.0)) for case in case_of_side.values()
    ]
    warned = "WARNING: the classification head of side may have collapsed: for 2 epochs all 2 validation cases get the same answer, 'left'"
    for trainer.current_epoch in range(2):  # half of the training
        assert warned not in Path(trainer.log_file).read_text()
        trainer.log_class_scores(records)
    assert warned in Path(trainer.log_file).read_text()
    assert trainer.training_state()["collapse_detector"]["side"]["one_class"] == 2


def test_other_peoples_trainers_gain_heads_by_inheritance(tiny_training: Folders) -> None:
    class Trainer(nnUNetTrainerMultitask, nnUNetTrainerNoMirroring):
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
            return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)

    trainer = make_trainer(Trainer, tiny_training["preprocessed"])
    trainer.run_training()
    assert trainer.inference_allowed_mirroring_axes in (None, ())
    in_first = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert not in_first & {id(parameter) for parameter in trainer.head_parameters()}


def test_curves_and_best_checkpoints_of_the_classes_are_kept(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"], num_val_iterations_per_epoch=3)
    trainer.run_training()
    curves = trainer.logger.get_checkpoint()
    for key in ("classification/case_score", "classification/ema_case_score", "classification/subtype/macro_f1",
                "classification/findings/macro_average_precision", "classification/grade/quadratic_kappa"):  # fmt: skip
        assert len(curves[key]) == 2, key
    assert len(curves["classification/subtype/train_loss"]) == len(curves["classification/subtype/val_loss"]) == 2
    for name in ("best", "best_classification", "best_joint", "final"):
        checkpoint = load_checkpoint_file(Path(trainer.output_folder, f"checkpoint_{name}.pth"))
        assert checkpoint["classification"]["tasks"]
    log = Path(trainer.log_file).read_text()
    assert "Classes, subtype:" in log
    assert "of 2 validation cases" in log


@pytest.mark.parametrize("stream", ["dataloader_train", "dataloader_val"])
def test_batches_carry_the_labels_of_their_cases(stream: str, tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.on_train_start()
    labels_seen = set()
    for _ in range(4):
        batch = next(getattr(trainer, stream))
        for position, identifier in enumerate(batch["keys"]):
            index = int(str(identifier).removeprefix("case_"))
            cells = tiny_case(index)[2] if index % 4 != 3 else dict.fromkeys(trainer.classification_tasks, "")
            for name, task in trainer.classification_tasks.items():
                target = batch["class"][name]["target"][position]
                if cells[name] == "":
                    assert target.isnan().all() if task.is_multilabel else target == -1
                else:
                    assert task.format_target(target.numpy() if task.is_multilabel else int(target)) == cells[name]
                    labels_seen.add(cells[name] != task.classes[0])
    assert True in labels_seen  # so that labels which are all 0 would show


@pytest.mark.parametrize("pooling", ["mean_max", "evidence"])
def test_the_annotation_decides_no_class_in_validation(pooling: str, tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.head_pooling = pooling
    trainer.on_train_start()
    trainer.on_validation_epoch_start()
    batch = next(trainer.dataloader_val)
    without_annotation = Batch({**batch, "target": [torch.zeros_like(target) for target in batch["target"]]})
    with torch.no_grad():
        results = [trainer.validation_step(each) for each in (batch, without_annotation)]
    assert not np.array_equal(results[0]["tp_hard"] + results[0]["fn_hard"], results[1]["tp_hard"] + results[1]["fn_hard"])
    for first, second in zip(results[0]["class_records"], results[1]["class_records"], strict=True):
        assert first.evidence == second.evidence
        assert all(np.array_equal(first.probabilities[name], second.probabilities[name]) for name in trainer.classification_tasks)


def test_scores_of_an_epoch_pool_the_cases_of_all_batches(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    trainer.initialize()
    trainer.class_scores = class_scores({"a": 1, "b": 0, "c": 0})
    # One case in each batch, all right: F1 over both classes is 0.5 within a batch, since the other class is absent.
    batches = [[record("a", 0.9, 1)], [record("b", 0.1, 1)], [record("c", 0.2, 1)]]
    counts = {name: np.ones(2) for name in ("tp_hard", "fp_hard", "fn_hard")}
    trainer.on_validation_epoch_end([{"loss": np.asarray(1.0), **counts, "class_records": records} for records in batches])
    assert trainer.logger.get_value("classification/subtype/macro_f1", 0) == 1
    assert trainer.logger.get_value("classification/case_score", 0) == 1


def test_validation_weighs_the_losses_like_training(tiny_training: Folders) -> None:
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    subtype = trainer.classification_tasks["subtype"]
    trainer.classification_tasks = {**trainer.classification_tasks, "subtype": dataclasses.replace(subtype, weight=3.0)}
    trainer._classification_steps = 10**6
    trainer.on_train_start()
    for head in trainer.heads.values():
        head.dropout.probability = 0.0
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        batch = next(trainer.dataloader_val)
        for part in batch["class"].values():
            part["weight"] = torch.tensor([0.3, 1.0])
        result = trainer.validation_step(batch)
    parts = sum(float(result[f"loss_classification_{name}"]) * (3 if name == "subtype" else 1) for name in trainer.classification_tasks)
    assert result["loss"] == pytest.approx(float(result["loss_segmentation"]) + 0.01 * parts, abs=1e-5)
    trainer.on_train_epoch_start()
    for name, value in trainer.train_step(batch).items():
        assert value == pytest.approx(float(result[name]), abs=1e-5), name


def record(identifier: str, probability: float, evidence: float) -> ClassRecord:
    return ClassRecord(
        identifier=identifier,
        probabilities={"subtype": np.array([1 - probability, probability])},
        evidence={"subtype": evidence},
    )


def class_scores(rows: dict[str, Any]) -> EpochClassScores:
    task = ClassificationTask.from_dict("subtype", SUBTYPE)
    labels = CaseLabels(tasks={"subtype": task}, rows={name: {"subtype": value} for name, value in rows.items()})
    return EpochClassScores({"subtype": task}, {"subtype": PredictedEvidence(channels=(2,))}, labels)


def test_patches_are_pooled_by_case_weighted_with_predicted_evidence() -> None:
    scores = class_scores({"a": 1})
    table = scores.case_probabilities([record("a", 0.9, 0.3), record("a", 0.1, 0.1), record("b", 0.2, 0), record("b", 0.4, 0)])
    assert table["a"]["subtype"][1] == pytest.approx((0.9 * 0.3 + 0.1 * 0.1) / 0.4)
    assert table["b"]["subtype"][1] == pytest.approx(0.3)  # nothing predicted: all patches count the same


def test_scores_count_cases_not_patches() -> None:
    scores = class_scores({"a": 1, "b": 0, "c": None})
    # a is right in two of three patches, and as a case; c is unknown
    records = [record("a", p, 1) for p in (0.9, 0.9, 0.1)] + [record("b", 0.1, 1), record("c", 0.9, 1)]
    result = scores.scores(records)
    assert result.by_task["subtype"]["macro_f1"] == 1
    assert result.case_score == 1
    assert result.cases_seen == 3


def test_predicted_evidence_comes_from_the_networks_own_logits() -> None:
    logits = torch.full((2, 3, 4, 4), -20.0)
    logits[0, 0] = logits[1, 0, :, :2] = logits[1, 2, :, 2:] = 20.0  # second patch: half lesion
    records = class_scores({"a": 1}).records(["a", "b"], {"subtype": torch.zeros(2, 2)}, logits)
    assert [r.evidence["subtype"] for r in records] == pytest.approx([0, 0.5], abs=1e-6)


def test_pretrained_weights_of_a_plain_training_start_a_joint_one(tiny_training: Folders, tmp_path: Path) -> None:
    plain = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], dataset="Dataset002_Plain")
    plain.initialize()
    plain.save_checkpoint(str(tmp_path / "plain.pth"))
    joint = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"], seed=5)
    joint.initialize()
    before, messages = weights(joint), []
    load_pretrained_weights(joint.network, tmp_path / "plain.pth", report=messages.append)
    after, given = weights(joint), weights(plain)
    for key, value in after.items():
        kept = ".seg_layers." in key or key.startswith("classification_heads.")
        assert torch.equal(value, before[key] if kept else given[key]), key
    assert "segmentation layers and classification heads keep" in messages[1]


def test_pretrained_weights_of_another_architecture_are_refused(tiny_training: Folders, tmp_path: Path) -> None:
    trainer = make_trainer(nnUNetTrainer, tiny_training["preprocessed"])
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    other = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], configuration="2d")
    other.initialize()
    before = copy.deepcopy(weights(other))
    with pytest.raises(ValueError, match="do not fit this network"):
        load_pretrained_weights(other.network, tmp_path / "checkpoint.pth")
    assert same(before, weights(other))


def test_what_a_prediction_needs_of_a_trainer_loads_little() -> None:
    code = (
        "import nnunetv2.inference.predict_from_raw_data, nnunetv2.preprocessing.preprocessors.default_preprocessor\n"
        "import nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask"
    )
    assert loaded_by(code, ["pandas", "blosc2", "skimage", "cc3d"]) == []


def test_a_training_loads_neither_readers_of_images_nor_the_compiler_before_it_uses_them() -> None:
    code = "import nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask"
    assert loaded_by(code, ["SimpleITK", "nibabel", "tifffile", "torch._dynamo", "sympy"]) == []

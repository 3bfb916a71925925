"""What each variant of the trainer does differently. Values marked as recorded are those of nnU-Net 2.8.1 for the same input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_datasets import PLANS
from tiny_trainings import CPU, make_trainer, weights
from torch import Tensor, nn

from nnunetv2.training.data_augmentation.default_augmentation import training_transforms
from nnunetv2.training.data_augmentation.strong_augmentation import strong_training_transforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

Folders = dict[str, Path]
SGD = {"momentum": 0.99, "weight_decay": 3e-5, "nesterov": True}
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 3e-5}
EXCLUSIVE = {"background": 0, "a": 1, "b": 2, "c": 3}
REGIONS = {"background": 0, "w": [1, 2, 3], "x": [2, 3], "y": [3], "z": [1]}


def variant(name: str, folders: Folders, **options: Any) -> Any:
    """A trainer of the dataset without classes, as long as its class says."""
    trainer_class = recursive_find_trainer_class_by_name(name)
    return make_trainer(
        trainer_class, folders["preprocessed"], **{"dataset": "Dataset002_Plain", "num_epochs": trainer_class.num_epochs, **options}
    )


def learning_rates(trainer: nnUNetTrainer, epochs: list[int]) -> list[float]:
    found = []
    for epoch in epochs:
        trainer.lr_scheduler.step(epoch)
        found.append(trainer.optimizer.param_groups[0]["lr"])
    return found


# --- optimisers and learning rates


@pytest.mark.parametrize(
    ("name", "optimizer", "rate", "settings"),
    [
        ("nnUNetTrainer", "SGD", 1e-2, SGD),
        ("nnUNetTrainerAdam", "AdamW", 1e-2, {**ADAM, "amsgrad": True}),
        ("nnUNetTrainerAdam1en3", "AdamW", 1e-3, {**ADAM, "amsgrad": True}),
        ("nnUNetTrainerAdam3en4", "AdamW", 3e-4, {**ADAM, "amsgrad": True}),
        ("nnUNetTrainerVanillaAdam", "Adam", 1e-2, {**ADAM, "amsgrad": False}),
        ("nnUNetTrainerVanillaAdam1en3", "Adam", 1e-3, {**ADAM, "amsgrad": False}),
        ("nnUNetTrainerVanillaAdam3en4", "Adam", 3e-4, {**ADAM, "amsgrad": False}),
    ],
)
def test_optimizer(name: str, optimizer: str, rate: float, settings: dict[str, Any], tiny_training: Folders) -> None:
    trainer = variant(name, tiny_training)
    trainer.initialize()
    assert type(trainer.optimizer).__name__ == optimizer
    assert {key: trainer.optimizer.defaults[key] for key in settings} == settings
    # recorded: the same course at another height
    assert np.array(learning_rates(trainer, [0, 1, 100, 999])) / rate == pytest.approx([1, 0.9991, 0.909533, 0.001995], rel=1e-3)
    assert trainer.hyper_parameters()["initial_lr"] == rate


@pytest.mark.parametrize(
    ("name", "rate", "by_epoch"),
    [
        ("nnUNetTrainerAdan", 1e-2, [1, 0.9991, 0.909533]),
        ("nnUNetTrainerAdan1en3", 1e-3, [1, 0.9991, 0.909533]),
        ("nnUNetTrainerAdan3en4", 3e-4, [1, 0.9991, 0.909533]),
        ("nnUNetTrainerAdan1en1", 1e-1, [1, 0.9991, 0.909533]),
        ("nnUNetTrainerAdanCosAnneal", 1e-2, [1, 0.999998, 0.975528]),
    ],
)
def test_adan(name: str, rate: float, by_epoch: list[float], tiny_training: Folders) -> None:
    pytest.importorskip("adan_pytorch")
    trainer = variant(name, tiny_training)
    trainer.initialize()
    assert type(trainer.optimizer).__name__ == "Adan"
    assert {key: trainer.optimizer.defaults[key] for key in ("betas", "weight_decay")} == {
        "betas": (0.02, 0.08, 0.01),
        "weight_decay": 3e-5,
    }
    assert np.array(learning_rates(trainer, [0, 1, 100])) / rate == pytest.approx(by_epoch, rel=1e-4)


def test_adan_says_which_package_it_needs(tiny_training: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adan_pytorch", None)
    with pytest.raises(RuntimeError, match="nnUNetTrainerAdan needs the package adan-pytorch.*pip install"):
        variant("nnUNetTrainerAdan", tiny_training).initialize()


def test_cosine(tiny_training: Folders) -> None:
    trainer = variant("nnUNetTrainerCosAnneal", tiny_training)
    trainer.initialize()
    assert type(trainer.optimizer).__name__ == "SGD"
    recorded = [0.01, 0.00999998, 0.00994087, 0.00975528, 0.005, 2e-8]
    assert learning_rates(trainer, [0, 1, 49, 100, 500, 999]) == pytest.approx(recorded, abs=1e-8)


def warmed_up_epochs(trainer: nnUNetTrainer, epochs: list[int]) -> list[float]:
    rates = []
    for epoch in epochs:
        trainer.current_epoch = epoch
        trainer.enter_stage_of_epoch()
        rates += learning_rates(trainer, [epoch])
    return rates


def test_warm_up(tiny_training: Folders) -> None:
    trainer = variant("nnUNetTrainer_warmup", tiny_training)
    trainer.initialize()
    optimizer = trainer.optimizer
    recorded = [0.0002, 0.0004, 0.0022, 0.01, 0.01, 0.00999053, 0.00952504, 0.00561205, 2.09e-5]
    assert warmed_up_epochs(trainer, [0, 1, 10, 49, 50, 51, 100, 500, 999]) == pytest.approx(recorded, abs=1e-8)
    assert trainer.optimizer is optimizer  # with its momenta
    with pytest.raises(ValueError, match="warmup_all, train"):
        trainer.configure_optimizers("cooldown")


@pytest.mark.parametrize("epoch", [3, 60])
def test_warm_up_is_continued(epoch: int, tiny_training: Folders) -> None:
    trainer = variant("nnUNetTrainer_warmup", tiny_training)
    trainer.initialize()
    for parameter in trainer.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    trainer.current_epoch = epoch - 1
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    continued = variant("nnUNetTrainer_warmup", tiny_training)
    continued.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    assert continued.training_stage == ("warmup_all" if epoch < 50 else "train")
    assert continued.lr_scheduler.optimizer is continued.optimizer
    assert len(continued.optimizer.state_dict()["state"]) > 0
    expected = 0.01 * (epoch + 1) / 50 if epoch < 50 else 0.01 * (1 - (epoch - 50) / 950) ** 0.9
    assert learning_rates(continued, [epoch]) == pytest.approx([expected])


# --- losses


def formula(number: int, factor: float) -> Tensor:
    return torch.sin(torch.arange(number, dtype=torch.float64) * factor)


def fixed_batch(kind: str) -> tuple[Tensor, Tensor]:
    """Logits of four channels, and a label map or regions, with or without the label or channel to ignore."""
    shape, n = (6, 7, 8), 2 * 6 * 7 * 8
    logits = (3 * formula(4 * n, 1.37)).float().reshape(2, 4, *shape)
    n_targets = 5 if "ignore" in kind else 4
    if "regions" in kind:
        return logits, (formula(n_targets * n, 0.73) > 0.4).to(torch.int16).reshape(2, n_targets, *shape)
    labels = torch.cos(torch.arange(n, dtype=torch.float64) * 2.11).abs() * n_targets
    return logits, labels.clamp(max=n_targets - 1).to(torch.int16).reshape(2, 1, *shape)


def variant_with_labels(name: str, kind: str, folders: Folders) -> nnUNetTrainer:
    folder = folders["preprocessed"] / "Dataset002_Plain"
    labels = {**(REGIONS if "regions" in kind else EXCLUSIVE), **({"ignore": 4} if "ignore" in kind else {})}
    dataset_json = {**load_json(folder / "dataset.json"), "labels": labels}
    if "regions" in kind:
        dataset_json["regions_class_order"] = [1, 2, 3, 4]
    return recursive_find_trainer_class_by_name(name)(load_json(folder / f"{PLANS}.json"), "3d_fullres", 0, dataset_json, CPU)


@pytest.mark.parametrize(
    ("name", "kind", "recorded"),
    [
        ("nnUNetTrainerCELoss", "labels", 2.959434),
        ("nnUNetTrainerCELoss", "labels, ignore", 2.965210),
        ("nnUNetTrainerDiceLoss", "labels", -0.252680),
        ("nnUNetTrainerDiceLoss", "regions", -0.425630),
        ("nnUNetTrainerDiceCELoss_noSmooth", "labels", 2.706754),
        ("nnUNetTrainerDiceCELoss_noSmooth", "labels, ignore", 2.714101),
        ("nnUNetTrainerDiceCELoss_noSmooth", "regions", 0.719811),
        ("nnUNetTrainerDiceCELoss_noSmooth", "regions, ignore", 4.357926),
        ("nnUNetTrainerTopk10Loss", "labels", 5.998613),
        ("nnUNetTrainerTopk10Loss", "labels, ignore", 5.845629),
        ("nnUNetTrainerTopk10LossLS01", "labels", 5.706929),
        ("nnUNetTrainerTopk10LossLS01", "labels, ignore", 5.562448),
        ("nnUNetTrainerDiceTopK10Loss", "labels", 5.745934),
        ("nnUNetTrainerDiceTopK10Loss", "labels, ignore", 5.594519),
    ],
)
def test_loss_of_a_fixed_batch(name: str, kind: str, recorded: float, tiny_training: Folders) -> None:
    logits, target = fixed_batch(kind)
    loss = variant_with_labels(name, kind, tiny_training)._build_loss()
    # under deep supervision, whose second and last output has the weight 0
    assert float(loss([logits, logits[:, :, ::2]], [target, target[:, :, ::2]])) == pytest.approx(recorded, abs=1e-5)


@pytest.mark.parametrize("kind", ["labels, ignore", "regions, ignore"])
def test_the_dice_loss_leaves_the_ignore_label_out(kind: str, tiny_training: Folders) -> None:
    loss = variant_with_labels("nnUNetTrainerDiceLoss", kind, tiny_training)._build_loss().loss
    logits, target = fixed_batch(kind)
    ignored = target[:, -1:] == (1 if "regions" in kind else 4)
    elsewhere = torch.where(ignored, -logits, logits)
    assert float(loss(logits, target)) == pytest.approx(float(loss(elsewhere, target)), abs=1e-6)
    assert float(loss(-logits, target)) != pytest.approx(float(loss(logits, target)), abs=1e-3)


def test_without_smoothing_an_absent_structure_has_no_dice(tiny_training: Folders) -> None:
    logits = torch.zeros(1, 4, 2, 2, 2)
    logits[:, 0] = 200
    nothing = torch.zeros(1, 1, 2, 2, 2)
    smooth, sharp = (
        variant_with_labels(name, "labels", tiny_training)._build_loss().loss
        for name in ("nnUNetTrainer", "nnUNetTrainerDiceCELoss_noSmooth")
    )
    assert float(smooth(logits, nothing)) == pytest.approx(-1)
    assert float(sharp(logits, nothing)) == pytest.approx(0)


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerCELoss", "nnUNetTrainerTopk10Loss", "nnUNetTrainerTopk10LossLS01", "nnUNetTrainerDiceTopK10Loss"]
)
def test_losses_on_label_maps_refuse_regions(name: str, tiny_training: Folders) -> None:
    with pytest.raises(ValueError, match="dataset.json declares regions. Use one with binary cross-entropy"):
        variant_with_labels(name, "regions", tiny_training)._build_loss()


# --- network


@pytest.mark.parametrize(("configuration", "layer"), [("2d", nn.BatchNorm2d), ("3d_fullres", nn.BatchNorm3d)])
def test_batch_normalisation(configuration: str, layer: type[nn.Module], tiny_training: Folders) -> None:
    trainer = variant("nnUNetTrainerBN", tiny_training, configuration=configuration)
    trainer.initialize()
    layers = [module for module in trainer.network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    stock = variant("nnUNetTrainer", tiny_training, configuration=configuration)
    stock.initialize()
    assert len(layers) == len([module for module in stock.network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)])
    assert all(type(module) is layer and module.affine and module.eps == 1e-5 for module in layers)
    architecture = trainer.plans_manager.plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert "InstanceNorm" in architecture["norm_op"]  # the plans stay those of the dataset


def test_without_deep_supervision_there_is_one_output(tiny_training: Folders) -> None:
    trainer = variant("nnUNetTrainerNoDeepSupervision", tiny_training)
    trainer.initialize()
    output = trainer.network(torch.zeros(1, 1, *trainer.configuration_manager.patch_size))
    assert isinstance(output, Tensor)
    assert not trainer.network.decoder.deep_supervision


# --- sampling


@pytest.mark.parametrize(
    ("name", "by_configuration"),
    [
        ("nnUNetTrainer_probabilisticOversampling", {"2d": 1 / 3, "3d_fullres": 1 / 2}),  # batches of 9 and 2
        ("nnUNetTrainer_probabilisticOversampling_033", {"2d": 0.33, "3d_fullres": 0.33}),
        ("nnUNetTrainer_probabilisticOversampling_010", {"2d": 0.1, "3d_fullres": 0.1}),
    ],
)
def test_foreground_is_drawn_for_each_patch(name: str, by_configuration: dict[str, float], tiny_training: Folders) -> None:
    for configuration, share in by_configuration.items():
        trainer = variant(name, tiny_training, configuration=configuration)
        trainer.initialize()
        loader = trainer.get_dataloaders()[0].loader
        np.random.seed(0)
        forced = np.mean([loader.get_do_oversample(0) for _ in range(4000)])
        assert forced == pytest.approx(share, abs=0.03)


def test_the_probability_is_the_same_in_every_process(tiny_training: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = variant("nnUNetTrainer_probabilisticOversampling", tiny_training)
    # As in a group of two processes, of which the other one says the same.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda values, value: values.__setitem__(slice(None), [value] * 2))
    trainer._set_batch_size_and_oversample()
    assert (trainer.batch_size, trainer.oversample_foreground_percent) == (1, 0.5)


# --- augmentation


def spatial(transforms: Any) -> Any:
    return next(step for step in transforms.transforms if "SpatialTransform" in type(step).__name__)


def corruption_of_cascade(transforms: Any) -> list[float]:
    steps = [getattr(step, "transform", step) for step in transforms.transforms]
    return [step.p_per_label for step in steps if hasattr(step, "p_per_label")]


@pytest.mark.parametrize(
    ("name", "image", "segmentation", "p_per_label", "strong"),
    [
        ("nnUNetTrainer", "bilinear", "bilinear", 0.5, False),
        ("nnUNetTrainer_DASegOrd0", "bilinear", "nearest", 1, False),
        ("nnUNetTrainer_DASegOrd0_NoMirroring", "bilinear", "nearest", 1, False),
        ("nnUNetTrainer_onlyMirror01_DASegOrd0", "bilinear", "nearest", 1, False),
        ("nnUNetTrainerDA5", "bilinear", "bilinear", 1, True),
        ("nnUNetTrainerDA5ord0", "nearest", "nearest", 1, True),
        ("nnUNetTrainerDA5Segord0", "bilinear", "nearest", 1, True),
        ("nnUNetTrainerDA5_10epochs", "bilinear", "bilinear", 1, True),
        ("nnUNetTrainer_onlyMirror01_DA5", "bilinear", "bilinear", 1, True),
    ],
)
def test_interpolation_and_cascade(name: str, image: str, segmentation: str, p_per_label: float, strong: bool) -> None:
    trainer_class = recursive_find_trainer_class_by_name(name)
    pipeline = trainer_class.get_training_transforms((16, 16), (-1, 1), None, (0, 1), False, is_cascaded=True, foreground_labels=[1, 2])
    assert (spatial(pipeline).mode_image, spatial(pipeline).mode_seg) == (image, segmentation)
    assert corruption_of_cascade(pipeline) == [p_per_label] * 2
    expected = (strong_training_transforms if strong else training_transforms)(
        (16, 16), (-1, 1), None, (0, 1), False, is_cascaded=True, foreground_labels=[1, 2]
    )
    assert [type(step) for step in pipeline.transforms] == [type(step) for step in expected.transforms]


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("nnUNetTrainer_DASegOrd0", (0, 1, 2)),
        ("nnUNetTrainer_DASegOrd0_NoMirroring", None),
        ("nnUNetTrainer_onlyMirror01_DASegOrd0", (0, 1)),
        ("nnUNetTrainerDA5", (0, 1, 2)),
        ("nnUNetTrainer_onlyMirror01_DA5", (0, 1)),
    ],
)
def test_mirror_axes_of_training_and_prediction(name: str, axes: tuple[int, ...] | None, tiny_training: Folders) -> None:
    trainer = variant(name, tiny_training)
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == axes
    assert trainer.inference_allowed_mirroring_axes == axes


@pytest.mark.parametrize(
    ("patch_size", "rotation", "dummy_2d", "initial"),  # recorded
    [
        ((24, 24), 180, False, (34, 34)),
        ((20, 31), 15, False, (39, 44)),
        ((10, 20, 20), 30, False, (26, 39, 31)),
        ((6, 24, 24), 180, True, (6, 34, 34)),
        ((128, 128, 128), 30, False, (249, 249, 249)),
    ],
)
def test_da5_reads_patches_for_its_larger_scalings(patch_size, rotation, dummy_2d, initial, tiny_training: Folders) -> None:
    trainer = variant("nnUNetTrainerDA5", tiny_training, configuration="2d" if len(patch_size) == 2 else "3d_fullres")
    trainer.configuration_manager.configuration["patch_size"] = list(patch_size)
    found = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert found[0] == pytest.approx((-np.deg2rad(rotation), np.deg2rad(rotation)))
    assert found[1] is dummy_2d
    assert tuple(found[2]) == initial


# --- benchmarks


@pytest.mark.parametrize("name", ["nnUNetTrainerBenchmark_5epochs", "nnUNetTrainerBenchmark_5epochs_noDataLoading"])
def test_benchmarks_leave_a_result_and_no_model(name: str, tiny_training: Folders) -> None:
    trainer = variant(name, tiny_training, num_iterations_per_epoch=1)
    if name.endswith("noDataLoading"):
        trainer.preprocessed_dataset_folder_base = "nowhere"
    trainer.initialize()
    before = weights(trainer)
    trainer.run_training()
    trainer.perform_actual_validation()
    assert trainer.current_epoch == 5
    assert any(not torch.equal(before[key], value) for key, value in weights(trainer).items())
    folder = Path(trainer.output_folder)
    assert not list(folder.glob("*.pth")) and not (folder / "validation").exists()
    (result,) = json.loads((folder / "benchmark_result.json").read_text()).values()
    assert result["torch_version"] == torch.__version__
    assert result["gpu_name"] == "cpu"
    assert 0 < result["fastest_epoch"] < 60


def test_a_failed_benchmark_says_so_and_keeps_other_results(tiny_training: Folders) -> None:
    trainer = variant("nnUNetTrainerBenchmark_5epochs_noDataLoading", tiny_training, num_iterations_per_epoch=1)
    file = Path(trainer.output_folder) / "benchmark_result.json"
    file.write_text('{"another machine": {"fastest_epoch": 1.0}}')
    trainer.train_step = lambda batch: torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(RuntimeError):
        trainer.run_training()
    results = json.loads(file.read_text())
    assert results.pop("another machine") == {"fastest_epoch": 1.0}
    assert "Not enough VRAM" in next(iter(results.values()))["fastest_epoch"]


def test_benchmarks_are_of_fold_0(tiny_training: Folders) -> None:
    with pytest.raises(ValueError, match="fold 0 only, not with fold 1"):
        variant("nnUNetTrainerBenchmark_5epochs", tiny_training, fold=1)


@pytest.mark.parametrize("kind", ["labels", "labels, ignore", "regions", "regions, ignore"])
def test_the_noise_of_a_benchmark_suits_the_loss(kind: str, tiny_training: Folders) -> None:
    trainer = variant_with_labels("nnUNetTrainerBenchmark_5epochs_noDataLoading", kind, tiny_training)
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    trainer.set_deep_supervision_enabled(True)
    assert np.isfinite(trainer.train_step(batch)["loss"])


# --- with class heads


def test_a_variant_gets_class_heads_by_a_second_base_and_swaps_no_flip_sensitive_axis(tiny_training: Folders) -> None:
    class Both(nnUNetTrainerMultitask, nnUNetTrainerDA5):
        pass

    trainer = make_trainer(Both, tiny_training["preprocessed"])
    assert "side" in trainer.classification_tasks  # left and right: the last axis of the patch, as long as the one before
    trainer.on_train_start()
    _, transforms, _ = trainer.patches_and_transforms()
    steps = [getattr(step, "transform", step) for step in transforms.transforms]
    assert "SharpeningTransform" in {type(step).__name__ for step in steps}
    assert not {"Rot90Transform", "TransposeAxesTransform"} & {type(step).__name__ for step in steps}
    assert trainer.inference_allowed_mirroring_axes == (0, 1)
    assert {"loss", "loss_classification_side"} <= set(trainer.train_step(next(trainer.dataloader_train)))
    alone = variant("nnUNetTrainerDA5", tiny_training).patches_and_transforms()[1]
    assert {"Rot90Transform", "TransposeAxesTransform"} <= {type(getattr(step, "transform", step)).__name__ for step in alone.transforms}


@pytest.mark.parametrize(
    ("name", "scheduler", "loss"),
    [
        ("nnUNetTrainer_warmup", "Lin_incr_LRScheduler", "DC_and_CE_loss"),
        ("nnUNetTrainerTopk10Loss", "PolyLRScheduler", "TopKLoss"),
    ],
)
def test_other_variants_train_with_class_heads_too(name: str, scheduler: str, loss: str, tiny_training: Folders) -> None:
    both = type("Both", (nnUNetTrainerMultitask, recursive_find_trainer_class_by_name(name)), {})
    trainer = make_trainer(both, tiny_training["preprocessed"])
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert (type(trainer.lr_scheduler).__name__, type(trainer.loss.loss).__name__) == (scheduler, loss)
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])

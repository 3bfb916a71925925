"""What the default augmentation consists of, and what it returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunetv2.training.data_augmentation.default_augmentation import training_transforms, validation_transforms
from nnunetv2.training.data_augmentation.patch_geometry import rotation_and_mirroring

SCALES_3D = [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5)]


def sample(shape: tuple[int, ...], channels: int = 2, cascade: bool = False) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = np.zeros((1 + cascade, *shape), dtype=np.int16)
    labels[:, shape[0] // 4 : shape[0] // 2, 5:20, 5:15] = 1
    labels[:, shape[0] // 3 : shape[0] // 2, 8:12, 8:12] = 2
    labels[:, :, -4:] = -1
    image = rng.normal(size=(channels, *shape)).astype(np.float32)
    return {"image": torch.from_numpy(image), "segmentation": torch.from_numpy(labels)}


def names(transforms) -> list[str]:
    return [type(getattr(step, "transform", step)).__name__ for step in transforms.transforms]


def test_order_of_the_steps() -> None:
    pipeline = training_transforms((16, 32, 32), (-1, 1), SCALES_3D, (0, 1), True, [True], True, [1, 2], [(1, 2), 2], 3)
    assert names(pipeline) == [
        "Convert3DTo2DTransform",
        "FastSpatialTransform",
        "Convert2DTo3DTransform",
        "FastGaussianNoiseTransform",
        "FastGaussianBlurTransform",
        "FastBrightnessTransform",
        "FastContrastTransform",
        "FastLowResolutionTransform",
        "FastGammaTransform",
        "FastGammaTransform",
        "MirrorTransform",
        "MaskImageTransform",
        "RemoveLabelTransform",
        "MoveSegAsOneHotToDataTransform",
        "RandomBinaryOperatorTransform",
        "RemoveRandomComponentTransform",
        "ConvertSegmentationToRegionsTransform",
        "DownsampleSegForDSTransform",
    ]
    probabilities = [step.apply_probability for step in pipeline.transforms if hasattr(step, "apply_probability")]
    assert probabilities == [0.1, 0.2, 0.15, 0.15, 0.25, 0.1, 0.3, 0.4, 0.2]


def test_nothing_that_is_not_asked_for() -> None:
    assert "MirrorTransform" not in names(training_transforms((16, 16), (-1, 1), None, (), False))
    assert names(training_transforms((16, 16), (-1, 1), None, None, False))[-1] == "RemoveLabelTransform"
    assert names(validation_transforms(None)) == ["RemoveLabelTransform"]


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_shapes_types_and_values_in_3d(dummy_2d: bool) -> None:
    pipeline = training_transforms((16, 24, 20), (-1, 1), SCALES_3D, (0, 1, 2), dummy_2d, [True, False], False, [1, 2])
    for seed in range(12):
        np.random.seed(seed), torch.manual_seed(seed)
        result = pipeline(**sample((16, 40, 36) if dummy_2d else (26, 40, 36)))
        assert result["image"].shape == (2, 16, 24, 20) and result["image"].dtype == torch.float32
        assert [tuple(target.shape) for target in result["segmentation"]] == [(1, 16, 24, 20), (1, 8, 12, 10)]
        assert all(target.dtype == torch.int16 and target.min() >= 0 for target in result["segmentation"])


def test_shapes_in_2d() -> None:
    pipeline = training_transforms((24, 20), (-3, 3), [(1, 1), (0.5, 0.5)], (0, 1), False)
    for seed in range(8):
        np.random.seed(seed), torch.manual_seed(seed)
        flat = {key: tensor[:, 12] for key, tensor in sample((26, 40, 36)).items()}
        result = pipeline(**flat)
        assert result["image"].shape == (2, 24, 20) and result["segmentation"][1].shape == (1, 12, 10)


def test_outside_the_mask_the_chosen_channels_are_zero() -> None:
    pipeline = training_transforms((40, 40, 36), (0, 0), None, (), False, [False, True])
    torch.manual_seed(0), np.random.seed(0)
    image = pipeline(**sample((40, 40, 36)))["image"]
    assert (image[1, :, -4:] == 0).all() and (image[0, :, -4:] != 0).any()


def test_regions_and_ignore_label_become_channels() -> None:
    result = validation_transforms(SCALES_3D, regions=[(1, 2), 2], ignore_label=3)(**sample((26, 40, 36)))["segmentation"]
    labels = sample((26, 40, 36))["segmentation"][0]
    assert result[0].dtype == torch.bool and result[0].shape == (3, 26, 40, 36)
    assert torch.equal(result[0][0], labels > 0) and torch.equal(result[0][1], labels == 2) and not result[0][2].any()


def test_cascade_input_becomes_image_channels() -> None:
    before = sample((26, 40, 36), cascade=True)
    result = validation_transforms(None, is_cascaded=True, foreground_labels=[1, 2])(**before)
    assert result["image"].shape[0] == 4 and result["segmentation"].shape[0] == 1
    assert torch.equal(result["image"][3] == 1, sample((26, 40, 36))["segmentation"][0] == 2)
    with pytest.raises(ValueError, match="foreground_labels"):
        validation_transforms(None, is_cascaded=True)


def test_a_sample_does_not_depend_on_the_ones_before() -> None:
    pipeline = training_transforms((16, 24, 20), (-1, 1), None, (0, 1, 2), False, None, True, [1, 2, 3])

    def augmented(seed: int) -> torch.Tensor:
        np.random.seed(seed), torch.manual_seed(seed)
        return pipeline(**sample((26, 40, 36), cascade=True))["image"]

    alone = [augmented(seed) for seed in range(10)]
    for seed in reversed(range(10)):
        assert torch.equal(augmented(seed), alone[seed]), seed


def test_a_blocked_axis_keeps_its_direction() -> None:
    rotation, dummy, initial, axes = rotation_and_mirroring((24, 24), blocked_axes=(1,))
    pipeline = training_transforms((24, 24), rotation, None, axes, dummy)
    ramp = torch.linspace(0, 1, int(initial[1])).repeat(int(initial[0]), 1)[None]
    for seed in range(60):
        np.random.seed(seed), torch.manual_seed(seed)
        image = pipeline(image=ramp.clone(), segmentation=torch.zeros((1, *ramp.shape[1:]), dtype=torch.int16))["image"][0]
        assert image[:, -8:].mean() > image[:, :8].mean(), seed

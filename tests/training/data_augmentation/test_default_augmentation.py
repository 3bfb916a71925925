"""What the default augmentation consists of, which axes it may turn and mirror, and what it returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunetv2.training.data_augmentation.default_augmentation import training_transforms, validation_transforms
from nnunetv2.training.data_augmentation.patch_geometry import blocked_patch_axes, restrict_to_flip_insensitive, rotation_and_mirroring

FULL_TURN, SMALL_TURN = np.pi, np.deg2rad(30)
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


@pytest.mark.parametrize(
    ("patch_size", "limit", "dummy_2d", "initial"),
    [
        ((128, 128, 128), SMALL_TURN, False, (205, 205, 205)),
        ((20, 320, 256), FULL_TURN, True, (20, 376, 376)),
        ((512, 512), FULL_TURN, False, (602, 602)),
        ((320, 192), np.deg2rad(15), False, (422, 225)),
    ],
)
def test_rotation_and_mirroring_by_patch_size(patch_size, limit, dummy_2d, initial) -> None:
    rotation, is_dummy, initial_patch_size, axes = rotation_and_mirroring(patch_size)
    assert rotation == pytest.approx((-limit, limit)) and is_dummy is dummy_2d
    assert tuple(initial_patch_size) == initial and axes == tuple(range(len(patch_size)))


def test_flip_sensitive_axes_are_neither_mirrored_nor_turned_far() -> None:
    rotation, _, initial, axes = rotation_and_mirroring((512, 512), blocked_axes=(1,))
    assert rotation == pytest.approx((-SMALL_TURN, SMALL_TURN)) and axes == (0,)
    assert tuple(initial) != (602, 602)
    rotation, _, _, axes = rotation_and_mirroring((320, 192), blocked_axes=(0, 1))
    assert rotation == pytest.approx((-np.deg2rad(15), np.deg2rad(15))) and axes == ()


def test_dummy_2d_turns_freely_about_a_flip_sensitive_axis_0() -> None:
    rotation, _, _, axes = rotation_and_mirroring((20, 320, 256), blocked_axes=(0,))
    assert rotation == pytest.approx((-FULL_TURN, FULL_TURN)) and axes == (1, 2)
    assert rotation_and_mirroring((20, 320, 256), blocked_axes=(2,))[0] == pytest.approx((-SMALL_TURN, SMALL_TURN))


def test_restriction_takes_what_a_users_trainer_returned() -> None:
    assert restrict_to_flip_insensitive((-0.1, 2.0), None, (0,)) == ((-0.1, pytest.approx(SMALL_TURN)), ())
    assert restrict_to_flip_insensitive((-2.0, 2.0), (0, 1), ()) == ((-2.0, 2.0), (0, 1))


@pytest.mark.parametrize(
    ("file_axes", "transpose_forward", "patch_axes", "expected"),
    [
        ((0,), (0, 1, 2), 3, (2,)),  # arrays are (z, y, x)
        ((2,), (0, 1, 2), 3, (0,)),
        ((0,), (2, 0, 1), 3, (0,)),  # x comes first after transposing
        ((0, 1), (1, 0, 2), 3, (0, 2)),
        ((0,), (0, 1, 2), 2, (1,)),  # 2D patches are (y, x); also photographs, read as (1, y, x)
        ((1,), (0, 1, 2), 2, (0,)),
        ((2,), (0, 1, 2), 2, ()),  # the axis across the slices is not in the patch
        ((0,), (2, 0, 1), 2, ()),
        ((1,), (2, 0, 1), 2, (1,)),
        ((), (0, 1, 2), 3, ()),
    ],
)
def test_axes_of_the_file_become_axes_of_the_patch(file_axes, transpose_forward, patch_axes, expected) -> None:
    assert blocked_patch_axes(file_axes, transpose_forward, patch_axes) == expected


def test_an_axis_that_no_image_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="x=0"):
        blocked_patch_axes((3,), (0, 1, 2), 3)


def test_a_blocked_axis_keeps_its_direction() -> None:
    rotation, dummy, initial, axes = rotation_and_mirroring((24, 24), blocked_axes=(1,))
    pipeline = training_transforms((24, 24), rotation, None, axes, dummy)
    ramp = torch.linspace(0, 1, int(initial[1])).repeat(int(initial[0]), 1)[None]
    for seed in range(60):
        np.random.seed(seed), torch.manual_seed(seed)
        image = pipeline(image=ramp.clone(), segmentation=torch.zeros((1, *ramp.shape[1:]), dtype=torch.int16))["image"][0]
        assert image[:, -8:].mean() > image[:, :8].mean(), seed

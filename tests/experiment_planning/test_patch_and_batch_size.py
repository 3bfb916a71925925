"""Memory estimate, patch size and batch size."""

from __future__ import annotations

import pytest

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.experiment_planning.experiment_planners.patch_and_batch_size import (
    batch_size_for,
    largest_fitting_patch,
    start_patch_size,
    unet_feature_map_size,
)

FEATURES_3D = (32, 64, 128, 256, 320, 320)
FEATURES_2D = (32, 64, 128, 256, 512, 512, 512, 512)
STRIDES_3D = [[1] * 3] + [[2] * 3] * 5
STRIDES_2D = [[1] * 2] + [[2] * 2] * 7


# Recorded from compute_conv_feature_map_size of dynamic-network-architectures 0.4.4: one channel, three classes.
@pytest.mark.parametrize(
    ("patch", "features", "strides", "blocks", "residual", "expected"),
    [
        ([128] * 3, FEATURES_3D, STRIDES_3D, [2] * 6, False, 452_796_416),
        ([128] * 3, FEATURES_3D, STRIDES_3D, [1, 3, 4, 6, 6, 6], True, 557_420_544),
        ([512] * 2, FEATURES_2D, STRIDES_2D, [2] * 8, False, 82_886_656),
        ([512] * 2, FEATURES_2D, STRIDES_2D, [1, 3, 4, 6, 6, 6, 6, 6], True, 129_703_936),
        ([40, 56, 40], FEATURES_3D[:4], STRIDES_3D[:4], [2] * 4, False, 19_174_400),
    ],
)
def test_the_estimate_equals_the_count_of_the_network(patch, features, strides, blocks, residual, expected) -> None:
    decoder = [1 if residual else 2] * (len(strides) - 1)
    assert unet_feature_map_size(patch, features, strides, blocks, decoder, 3, residual=residual) == expected


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("spacing", "patch"), [((1, 1, 1), (32, 40, 32)), ((5, 1, 1), (12, 64, 48)), ((1, 1), (96, 64)), ((3, 1, 1), (7, 40, 40))]
)
def test_the_estimate_equals_the_count_of_a_network_that_is_built(spacing, patch, residual) -> None:
    nn = pytest.importorskip("torch").nn
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    topology = get_pool_and_conv_props(spacing, patch)
    n, dim = topology.n_stages, len(patch)
    features = [min(20, 4 * 2**i) for i in range(n)]
    blocks, decoder = [1, 2, 3, 2, 1, 2, 2][:n], [1, 2, 1, 1, 2, 1][: n - 1]
    conv, norm = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}[dim]
    network_class = unet.ResidualEncoderUNet if residual else unet.PlainConvUNet
    network = network_class(
        2, n, features, conv, topology.kernel_sizes, topology.strides, blocks, 5, decoder, True, norm, {"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    )  # fmt: skip
    patch = tuple(topology.patch_size.tolist())
    estimate = unet_feature_map_size(patch, features, topology.strides, blocks, decoder, 5, residual=residual)
    assert estimate == network.compute_conv_feature_map_size(patch)


def test_the_start_patch_has_equal_edges_in_mm_within_the_image() -> None:
    assert start_patch_size((1, 1, 1), (500, 500, 100)).tolist() == [256, 256, 100]
    assert start_patch_size((4, 1, 1), (500, 500, 500)).tolist() == [102, 406, 406]
    assert start_patch_size((1, 1), (100.5, 4000)).tolist() == [100.5, 2048]


def test_the_batch_fills_the_memory_but_covers_little_of_the_dataset() -> None:
    assert batch_size_for(50, 100, 2, voxels_covered=1e9, patch_size=(10, 10)) == 4
    assert batch_size_for(50, 100, 2, voxels_covered=300, patch_size=(10, 10)) == 3
    assert batch_size_for(50, 100, 2, voxels_covered=0, patch_size=(10, 10)) == 2


def test_an_impossible_budget_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(ValueError, match="memory target"):
        largest_fitting_patch((1, 1, 1), (64, 64, 64), 4, lambda topology: 1.0, lambda estimate: True)

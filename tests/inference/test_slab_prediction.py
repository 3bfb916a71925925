"""Images whose labels are made slab by slab get the labels and the classes that all logits at once give, with few rows in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import dataset_json, plans, write_images, write_model

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference import slab_prediction
from nnunetv2.inference.blockwise_export import BlockwiseLabels
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import ClassificationOptions, nnUNetPredictor
from nnunetv2.inference.slab_prediction import RollingAccumulator, SlabResult, plan_slabs, predict_in_slabs, tiles_by_slab
from nnunetv2.inference.sliding_window_prediction import NOT_FINITE, TileAccumulator, tile_slicers
from nnunetv2.preprocessing.resampling.blockwise_resampling import blockwise_resampling

CPU = torch.device("cpu")
REGIONS = dataset_json({"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])


class AtOnce(nnUNetPredictor):
    """All logits in memory, whatever the image."""

    def works_in_slabs(self, with_probabilities: bool) -> bool:
        return False


class Watched(nnUNetPredictor):
    """Remembers what tiles are added to."""

    def _add_tiles(self, data, group, accumulator, classification) -> None:
        self.accumulators = {*getattr(self, "accumulators", ()), accumulator}
        super()._add_tiles(data, group, accumulator, classification)


def predictor_of(model: Path, folds=(0,), kind: type[nnUNetPredictor] = nnUNetPredictor, **options) -> nnUNetPredictor:
    predictor = kind(device=CPU, allow_tqdm=False, **{"use_mirroring": False, **options})
    predictor.initialize_from_trained_model_folder(str(model), folds)
    return predictor


def case(predictor: nnUNetPredictor, shape: tuple[int, int, int], spacing=(1.0, 1.0, 1.0)) -> tuple[torch.Tensor, dict]:
    """A preprocessed random image, of which the first two rows are cropped away."""
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32) + 5
    image[:, :2] = 0
    return predictor._preprocess_array(image, {"spacing": list(spacing)}, None)


def labels_of_all_logits(predictor: nnUNetPredictor, data: torch.Tensor, properties: dict) -> np.ndarray:
    logits = predictor.predict_logits_from_preprocessed_data(data)
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, predictor.plans_manager, predictor.configuration_manager, predictor.label_manager, properties
    )


def in_slabs(predictor: nnUNetPredictor, data: torch.Tensor, properties: dict, options: ClassificationOptions | None = None) -> SlabResult:
    found = predict_in_slabs(predictor, data, properties, options)
    assert found is not None
    return found


def check_labels(predictor: nnUNetPredictor, data: torch.Tensor, properties: dict) -> None:
    expected = labels_of_all_logits(predictor, data, properties)
    found = in_slabs(predictor, data, properties).segmentation
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) == 3


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Segmentation alone, three folds."""
    return write_model(tmp_path_factory.mktemp("model") / "model", folds=(0, 1, 2))


@pytest.fixture(scope="module")
def joint_model(tmp_path_factory) -> Path:
    """Heads of whole cases that measure structures, two folds."""
    options = {"classification": True, "level": "case", "morphometry": True}
    return write_model(tmp_path_factory.mktemp("joint") / "model", folds=(0, 1), **options)


# --- the same labels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"use_mirroring": True}, {"use_gaussian": False}, {"tile_step_size": 0.3}, {"tile_step_size": 1.0}], ids=str
)
def test_labels_equal_those_of_all_logits(model, options) -> None:
    predictor = predictor_of(model, **options)
    check_labels(predictor, *case(predictor, (62, 20, 23)))


@pytest.mark.parametrize("folds", [(0,), (0, 1), (0, 1, 2)])
def test_every_block_gets_the_logits_of_the_whole_image_to_the_last_bit(model, folds, monkeypatch) -> None:
    rows: dict[int, np.ndarray] = {}

    class Recording(BlockwiseLabels):
        def add_row(self, row, logits) -> bool:
            rows[row] = logits.copy()
            return super().add_row(row, logits)

    monkeypatch.setattr(slab_prediction, "BlockwiseLabels", Recording)
    predictor = predictor_of(model, folds)
    data, properties = case(predictor, (92, 11, 20))
    expected = predictor.predict_logits_from_preprocessed_data(data).numpy()
    in_slabs(predictor, data, properties)
    assert len(rows) > 9  # one for each slab; the grids are the same, so that every logit is read once
    np.testing.assert_array_equal(np.concatenate([rows[row] for row in range(len(rows))], axis=1), expected)


@pytest.mark.parametrize("folds", [(0, 1), (0, 1, 2)])
def test_folds_that_advance_together_give_the_labels_of_their_mean(model, folds) -> None:
    predictor = predictor_of(model, folds)
    check_labels(predictor, *case(predictor, (90, 18, 20)))


@pytest.mark.parametrize(
    "spacing",
    [(0.4, 0.6, 1.7), (1.6, 0.8, 0.9), (2.3, 1.0, 1.0), (5.0, 1.0, 1.0), (0.1, 1.0, 1.0)],
    ids=["finer", "coarser", "coarse", "separate", "far_finer"],
)
def test_labels_equal_those_of_all_logits_on_other_grids(tmp_path, spacing) -> None:
    content = plans(spacing=spacing)
    predictor = predictor_of(write_model(tmp_path / "model", plans_content=content))
    depth = round(80 * spacing[0])
    check_labels(predictor, *case(predictor, (depth, 17, 19)))


def test_labels_equal_those_of_all_logits_with_axes_in_another_order(tmp_path) -> None:
    content = plans() | {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    predictor = predictor_of(write_model(tmp_path / "model", plans_content=content))
    check_labels(predictor, *case(predictor, (18, 20, 64)))


def test_regions_are_painted_as_with_all_logits(tmp_path) -> None:
    predictor = predictor_of(write_model(tmp_path / "model", dataset=REGIONS, plans_content=plans(spacing=(0.7, 1.0, 1.0))))
    check_labels(predictor, *case(predictor, (50, 17, 19)))


@pytest.mark.parametrize("folds", [(0,), (0, 1)])
def test_slices_of_2d_configurations_are_labelled_as_with_all_logits(tmp_path, folds) -> None:
    predictor = predictor_of(write_model(tmp_path / "model", folds=(0, 1), plans_content=plans(dimensions=2)), folds)
    check_labels(predictor, *case(predictor, (45, 20, 12)))


def test_what_was_padded_is_no_part_of_the_labels(model) -> None:
    predictor = predictor_of(model)
    data, properties = case(predictor, (50, 7, 13))
    assert data.shape[1:] == (48, 7, 13)
    check_labels(predictor, data, properties)


# --- few rows in memory ----------------------------------------------------------------------------------------------------------


def test_a_tile_and_what_neighbouring_blocks_share_is_in_memory_however_deep_the_image_is(model) -> None:
    for depth in (52, 202):
        predictor = predictor_of(model, kind=Watched)
        in_slabs(predictor, *case(predictor, (depth, 16, 16)))
        [sums] = predictor.accumulators
        assert isinstance(sums, RollingAccumulator)
        assert sums.rows_in_memory == 16  # the tile
        assert sums._sums.logits.shape == (3, 16, 16, 16)


def test_resampling_needs_one_row_more() -> None:
    tiles = tiles_by_slab(tile_slicers((100, 16, 16), (20, 16, 16), 0.5))
    stops = [slab[0][1].start for slab in tiles[1:]]
    resampling = blockwise_resampling((100, 16, 16), (170, 20, 20), (1, 1, 1), (0.6, 0.8, 0.8), order=1, row_stops=stops)
    plan = plan_slabs(tiles, 100, resampling.blocks[0])
    assert plan.rows_in_memory == 21
    assert [slab.final for slab in plan.slabs] == [slice(start, start + 10) for start in range(0, 80, 10)] + [slice(80, 100)]
    assert [row for slab in plan.slabs for row in slab.block_rows] == list(range(len(resampling.blocks[0])))


def test_shallow_images_take_the_way_that_needs_no_more_memory(model) -> None:
    for folds, shallow, deep in (((0,), 18, 22), ((0, 1, 2), 26, 27)):  # two rows are cropped away
        predictor = predictor_of(model, folds)
        assert predict_in_slabs(predictor, *case(predictor, (shallow, 16, 16)), None) is None
        assert predict_in_slabs(predictor, *case(predictor, (deep, 16, 16)), None) is not None


def test_sums_roll_through_an_image_like_sums_of_all_of_it() -> None:
    weights = torch.rand(6, 4, 5) + 0.1
    whole, rolling = TileAccumulator(2, (40, 4, 9), weights), RollingAccumulator(2, 9, (4, 9), weights)
    slicers = tile_slicers((40, 4, 9), (6, 4, 5), 0.5)
    tiles = [torch.randn(2, 6, 4, 5) for _ in slicers]
    parts, final = [], 0
    for tile, slicer in zip(tiles, slicers, strict=True):
        whole.add(tile.clone(), slicer)
        if slicer[1].start > final:
            parts.append(rolling.average(slice(final, slicer[1].start)).clone())
            final = slicer[1].start
            rolling.forget_before(max(0, final - 3))
        rolling.add(tile.clone(), slicer)
    parts.append(rolling.average(slice(final, 40)))
    assert torch.equal(torch.cat(parts, dim=1), whole.result())
    assert torch.equal(rolling.rows(slice(32, 40)), whole.logits[:, 32:])  # older rows are still there


@pytest.mark.parametrize("slicers", [[], [(slice(None), slice(8, 24)), (slice(None), slice(0, 16))]])
def test_tiles_in_another_order_are_not_taken_by_slabs(slicers) -> None:
    assert tiles_by_slab(slicers) is None


# --- classes ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["patches", "cases"])
def test_classes_and_their_table_are_the_same_to_the_last_digit(joint_model, tmp_path, heads) -> None:
    model = joint_model if heads == "cases" else write_model(tmp_path / "model", folds=(0, 1), classification=True)
    write_images(tmp_path / "images", number=2, size=(70, 17, 19), spacing=(1.1, 0.9, 0.8))
    for kind, name in ((AtOnce, "whole"), (Watched, "slabs")):
        predictor = predictor_of(model, (0, 1), kind)
        predictor.predict_from_files(str(tmp_path / "images"), str(tmp_path / name), save_classification=True)
    assert all(isinstance(sums, RollingAccumulator) for sums in predictor.accumulators)
    for file in ("classification.csv", "case_0.nii.gz", "case_1.nii.gz"):
        assert (tmp_path / "slabs" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_saliency_is_the_same(tmp_path) -> None:
    model = write_model(tmp_path / "model", classification=True)
    options = ClassificationOptions(saliency=True)
    image = np.random.default_rng(0).normal(size=(1, 40, 16, 16)).astype(np.float32)
    whole, slabs = (
        predictor_of(model, kind=kind).predict_case(
            image, {"spacing": [1, 1, 1]}, return_probabilities=False, classification_options=options
        )
        for kind in (AtOnce, nnUNetPredictor)
    )
    assert whole.classification == slabs.classification
    for name, values in whole.saliency.items():
        assert values.any()
        np.testing.assert_array_equal(slabs.saliency[name], values)


# --- the ways to predict ---------------------------------------------------------------------------------------------------------


def test_every_way_to_predict_a_deep_image_without_probabilities_takes_it_in_slabs(model, tmp_path) -> None:
    write_images(tmp_path / "images", number=1, size=(50, 17, 19))
    files = [[str(tmp_path / "images" / "case_0_0000.nii.gz")]]
    image, properties = SimpleITKIO().read_images(files[0])
    ways = {
        "files": lambda p: p.predict_from_files(files, None)[0],
        "written": lambda p: p.predict_from_files(files, [str(tmp_path / type(p).__name__)]) and read(tmp_path / type(p).__name__),
        "arrays": lambda p: p.predict_from_list_of_npy_arrays([image], None, [properties], None)[0],
        "single": lambda p: p.predict_single_npy_array(image, properties),
        "case": lambda p: p.predict_case(image, properties, return_probabilities=False).segmentation,
    }
    expected = predictor_of(model, kind=AtOnce).predict_single_npy_array(image, properties)
    for name, way in ways.items():
        predictor = predictor_of(model, kind=Watched)
        np.testing.assert_array_equal(way(predictor), expected, err_msg=name)
        assert all(isinstance(sums, RollingAccumulator) for sums in predictor.accumulators), name
    predictor = predictor_of(model, kind=Watched)
    segmentation, probabilities = predictor.predict_single_npy_array(image, properties, save_or_return_probabilities=True)
    np.testing.assert_array_equal(segmentation, expected)
    assert probabilities.shape == (3, 50, 17, 19)
    assert all(isinstance(sums, TileAccumulator) for sums in predictor.accumulators)


def read(file_without_ending: Path) -> np.ndarray:
    return SimpleITKIO().read_seg(f"{file_without_ending}.nii.gz")[0][0].astype(np.uint8)


@pytest.mark.parametrize(
    "name",
    ["predict_logits_from_preprocessed_data", "predict_sliding_window_return_logits", "_internal_predict_sliding_window_return_logits"],
)
def test_a_subclass_with_a_sliding_window_of_its_own_gets_all_logits(model, name) -> None:
    def override(self, *arguments, **keywords):
        logits = getattr(nnUNetPredictor, name)(self, *arguments, **keywords).clone()
        logits[2] += 1000
        return logits

    predictor = predictor_of(model, kind=type("Own", (nnUNetPredictor,), {name: override}))
    segmentation = predictor.predict_single_npy_array(np.random.rand(1, 50, 16, 16).astype(np.float32), {"spacing": [1, 1, 1]})
    assert (segmentation == 2).all()


def test_a_subclass_with_a_network_pass_of_its_own_is_asked_for_every_tile(model) -> None:
    class Constant(Watched):
        tiles = 0

        def _internal_maybe_mirror_and_predict(self, x):
            self.tiles += 1
            return torch.tensor([0.0, 0, 1]).reshape(1, 3, 1, 1, 1).expand(1, 3, *x.shape[2:])

    predictor = predictor_of(model, kind=Constant)
    segmentation = predictor.predict_single_npy_array(np.random.rand(1, 50, 16, 16).astype(np.float32), {"spacing": [1, 1, 1]})
    assert (segmentation == 2).all()
    assert predictor.tiles == 6
    assert all(isinstance(sums, RollingAccumulator) for sums in predictor.accumulators)


def test_a_method_that_is_replaced_in_the_class_is_called(model, monkeypatch) -> None:
    predictor = predictor_of(model)
    seen = []
    original = nnUNetPredictor.predict_sliding_window_return_logits

    def replaced(self, input_image):
        seen.append(tuple(input_image.shape))
        return original(self, input_image)

    monkeypatch.setattr(nnUNetPredictor, "predict_sliding_window_return_logits", replaced)
    predictor.predict_single_npy_array(np.random.rand(1, 62, 16, 16).astype(np.float32), {"spacing": [1, 1, 1]})
    assert seen == [(1, 62, 16, 16)]


def test_tiles_without_an_end_are_taken_with_all_logits_at_once() -> None:
    assert tiles_by_slab([(slice(None), slice(0, None), slice(0, 8), slice(0, 8))]) is None


def test_float16_sums_are_of_whole_images(model, monkeypatch) -> None:
    predictor = predictor_of(model)
    assert predictor.works_in_slabs(False)
    monkeypatch.setenv("nnUNet_half_accumulation", "1")
    assert not predictor.works_in_slabs(False)


# --- what is no number -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken_fold", [0, 1])
def test_logits_that_are_no_numbers_are_an_error_in_every_fold(model, broken_fold) -> None:
    predictor = predictor_of(model, (0, 1))
    weights = predictor.list_of_parameters[broken_fold]
    name = next(name for name in weights if "seg_layers" in name)
    predictor.list_of_parameters[broken_fold] = {**weights, name: torch.full_like(weights[name], float("nan"))}
    data, properties = case(predictor, (62, 16, 16))
    with pytest.raises(RuntimeError) as whole:
        predictor.predict_logits_from_preprocessed_data(data)
    with pytest.raises(RuntimeError) as slabs:
        predict_in_slabs(predictor, data, properties, None)
    assert str(whole.value) == str(slabs.value) == NOT_FINITE


def test_a_broken_voxel_in_the_last_rows_is_found(model) -> None:
    predictor = predictor_of(model)
    data, properties = case(predictor, (62, 16, 16))
    data[0, -1, 3, 3] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        predict_in_slabs(predictor, data, properties, None)


def test_folds_whose_sum_is_no_number_get_the_labels_of_all_logits(model) -> None:
    predictor = predictor_of(model, (0, 1), use_gaussian=False, tile_step_size=1.0)
    for index, weights in enumerate(predictor.list_of_parameters):
        name = next(name for name in weights if name.endswith("seg_layers.0.bias"))
        predictor.list_of_parameters[index] = {**weights, name: torch.tensor([0.0, 3e38, 0.0])}
    data, properties = case(predictor, (66, 16, 16))
    with np.errstate(all="ignore"):
        assert predict_in_slabs(predictor, data, properties, None) is None
        result, _, _ = predictor._predict_result(data, properties, None, False)
        np.testing.assert_array_equal(predictor._finish(result, properties, None, False), labels_of_all_logits(predictor, data, properties))

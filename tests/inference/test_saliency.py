from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_models import CLASSIFICATION, dataset_json, plans, random_network, write_images, write_model
from torch import Tensor, nn
from torch.nn import functional as F

from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.morphometry import morphometry_names
from nnunetv2.inference.predict_from_raw_data import ClassificationOptions, nnUNetPredictor
from nnunetv2.inference.saliency import check_saliency_files, explained_logit, head_saliency, saliency_file, tile_saliency
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.network_architecture.classification_heads import CaseHead, HeadDescription, build_heads
from nnunetv2.network_architecture.joint_network import JointNetwork
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

CPU = torch.device("cpu")
MAPS = ClassificationOptions(saliency=True)
POOLINGS, TYPES = ("mean_max", "attention", "evidence"), ("multiclass", "multilabel", "ordinal")
LEVELS = ("patch", "case", "case with measures")


# --- a network whose weights are known: one channel for bright voxels, one for dark ones


class Encoder(nn.Module):
    output_channels = (2, 2)

    def forward(self, image: Tensor) -> list[Tensor]:
        fine = torch.cat([F.relu(image - 1), F.relu(-image - 1)], dim=1)
        pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
        return [fine, pool(fine, 2)]


class Decoder(nn.Module):
    """Lesion where a voxel is brighter than 5 or darker than -5."""

    def forward(self, features: list[Tensor]) -> Tensor:
        lesion = 10 * (features[0].amax(dim=1, keepdim=True) - 4)
        return torch.cat([torch.zeros_like(lesion), torch.full_like(lesion, -20), lesion], dim=1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()


def hand_set_head(name: str, kind: str, pooling: str, level: str) -> nn.Module:
    """Logit 0 grows with the bright channel of both stages, logit 1 with the dark one; the ordinal score with the bright one."""
    classes = ("none", "some", "bright") if kind == "ordinal" else ("bright", "dark")
    task = ClassificationTask(name=name, classes=classes, type=kind, evidence=("lesion",))
    evidence = PredictedEvidence(channels=(2,))
    if level != "patch":
        structures = {"lesion": (2,)} if level == "case with measures" else {}
        description = HeadDescription(
            task=task, pooling=pooling, stages=(0, 1), level="case", evidence=evidence,
            structures=structures, measures=tuple(morphometry_names(list(structures), 1)),
        )  # fmt: skip
        head: Any = CaseHead(description, (2, 2))
    else:
        head = build_heads({name: task}, (2, 2), pooling=pooling, stages=(0, 1), labels=dataset_json()["labels"])[name]
    with torch.no_grad():
        for parameter in head.output.parameters():
            parameter.zero_()
        layer = head.output.score if kind == "ordinal" else head.output
        if level == "patch":
            # the units of the hidden layer are the two channels, far from where its activation function is curved
            head.norms = nn.ModuleList([nn.Identity() for _ in head.norms])
            head.hidden.weight.zero_()
            head.hidden.bias.fill_(50)
            for channel in (0, 1):
                head.hidden.weight[channel, [channel, channel + 2]] = 1
                if channel < len(layer.weight):
                    layer.weight[channel, channel] = 1
            if kind != "ordinal":
                layer.bias.fill_(-50)
        else:
            for channel in range(min(2, len(layer.weight))):
                layer.weight[channel, [channel, channel + 2]] = 1
    return head.eval()


def known_predictor(heads: dict[str, nn.Module], content: dict | None = None, **dataset: Any) -> nnUNetPredictor:
    content = content or plans()
    configuration = next(iter(content["configurations"]))
    content["configurations"][configuration]["normalization_schemes"] = ["NoNormalization"]
    manager = PlansManager(content)
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, use_mirroring=False)
    network = JointNetwork(Network(), heads)
    predictor.manual_initialization(
        network, manager, manager.get_configuration(configuration), None, dataset_json(**dataset), "nnUNetTrainer", None
    )
    return predictor


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    return ((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) <= radius**2


SHAPE, FIRST, SECOND = (16, 20, 48), (8, 10, 9), (8, 10, 38)


def image_with(first: tuple[float, float], second: tuple[float, float]) -> np.ndarray:
    """Two balls, each with an intensity and a radius, far enough apart for tiles of their own; ``(1, *SHAPE)``."""
    image = np.full(SHAPE, 0.5, dtype=np.float32)
    for centre, (value, radius) in ((FIRST, first), (SECOND, second)):
        image[ball(SHAPE, centre, radius)] = value
    return image[None]


def mass_at(values: np.ndarray, centre: tuple[int, ...], radius: float = 6) -> float:
    """Share of a map inside a ball."""
    return float(values[ball(values.shape, centre, radius)].sum() / values.sum())


@pytest.mark.parametrize(("pooling", "level", "kind"), list(itertools.product(POOLINGS, LEVELS, TYPES)))
def test_the_map_lies_where_the_predicted_class_is_seen(pooling, level, kind) -> None:
    predictor = known_predictor({"task": hand_set_head("task", kind, pooling, level)})
    maps, labels = [], []
    for first, second in (((9, 5), (-9, 3)), ((9, 3), (-9, 5))):
        case = predictor.predict_case(image_with(first, second), {"spacing": [1, 1, 1]}, classification_options=MAPS)
        values = case.saliency["task"]
        assert values.shape == case.segmentation.shape == SHAPE
        assert values.dtype == np.float32
        assert values.min() == 0
        assert values.max() == 1
        maps.append(values)
        labels.append(case.classification["task"].label)
    assert mass_at(maps[0], FIRST) > 0.95
    if kind == "multiclass":  # the larger of the two is what was predicted, and nothing but it is in the map
        assert labels == ["bright", "dark"]
    # multilabel shows the most probable class, ordinal what raises its score
    assert mass_at(maps[1], FIRST if kind == "ordinal" else SECOND) > 0.95


def test_tiles_count_as_much_as_in_the_decision() -> None:
    # Both balls are bright, but the network predicts a lesion only in the second one, so that the first one's tiles have no say.
    head = hand_set_head("task", "multiclass", "mean_max", "patch")
    predictor = known_predictor({"task": head})
    image = image_with((4, 5), (9, 3))
    # The first ball's share of the map, at least and at most. The larger ball of 4 has the higher probability in a tile.
    expected = {"evidence": (0, 0.01), "mean": (0.2, 0.8), "max": (0.95, 1), "top3": (0.95, 1)}
    for aggregation, (lowest, highest) in expected.items():
        options = ClassificationOptions(saliency=True, aggregation=aggregation)
        values = predictor.predict_case(image, {"spacing": [1, 1, 1]}, classification_options=options).saliency["task"]
        assert lowest <= mass_at(values, FIRST) <= highest, aggregation
        assert mass_at(values, FIRST) + mass_at(values, SECOND) > 0.95


def test_nothing_seen_is_an_empty_map() -> None:
    predictor = known_predictor({"task": hand_set_head("task", "multiclass", "mean_max", "patch")})
    case = predictor.predict_case(np.full((1, 16, 16, 16), 0.5, np.float32), {"spacing": [1, 1, 1]}, classification_options=MAPS)
    assert not case.saliency["task"].any()


# --- against other ways to compute the same


@pytest.mark.parametrize("pooling", POOLINGS)
def test_channel_weights_are_how_much_the_logit_grows_with_a_channel(pooling) -> None:
    network = random_network(plans(), dataset_json(), seed=1, classification=True, pooling=pooling).eval()
    tile = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network.encoder(tile)
        segmentation = network.decoder(features)
    for name, index in (("subtype", 2), ("findings", 0), ("grade", 1)):
        head, step = network.heads[name], 1e-3
        expected = torch.zeros(16, 16, 16)
        for stage, feature in enumerate(features):
            stage_map = torch.zeros(feature.shape[2:])
            for channel in range(feature.shape[1]):
                logits = []
                for sign in (1, -1):
                    moved = [value.clone() for value in features]
                    moved[stage][:, channel] += sign * step
                    with torch.no_grad():
                        logits.append(float(head(moved, segmentation)[0, index]))
                stage_map += (logits[0] - logits[1]) / (2 * step) * feature[0, channel]
            expected += F.interpolate(stage_map.relu()[None, None], size=(16, 16, 16), mode="trilinear", align_corners=False)[0, 0]
        found = tile_saliency(network, tile, {name: index})[name]
        assert expected.max() > 0
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01 * float(expected.max()))
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_of_the_encoder_stops_at_the_head(pooling) -> None:
    network = random_network(plans(), dataset_json(), seed=1, classification=True, pooling=pooling).eval()
    with torch.no_grad():
        features = network.encoder(torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)))
        segmentation = network.decoder(features)
    expected = head_saliency(network.heads["subtype"], features, segmentation, 0, (16, 16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_saliency(network.heads["subtype"], features, segmentation, 0, (16, 16, 16))
    assert expected.max() > 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("aggregation", ["evidence", "mean", "max", "top3"])
def test_tiles_and_folds_are_blended_like_the_segmentation(tmp_path, aggregation) -> None:
    model = write_model(tmp_path / "model", folds=(0, 1), classification=True)
    data = torch.randn(1, 24, 16, 30, generator=torch.Generator().manual_seed(0))
    data[:, :12, :, 20:] *= 5
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(model), (0, 1))
    options = ClassificationOptions(saliency=True, aggregation=aggregation)
    _, classes, maps = predictor._predict_logits_classes_and_saliency(data, options, None)
    gaussian = compute_gaussian((16, 16, 16), 1.0 / 8, 10, torch.float32, CPU)
    expected = torch.zeros(data.shape[1:])
    chosen = int(classes["subtype"].argmax())
    for fold in (0, 1):
        alone = nnUNetPredictor(device=CPU, allow_tqdm=False)
        alone.initialize_from_trained_model_folder(str(model), fold)
        places = [tuple(slice(at, at + 16) for at in (x, 0, z)) for x, z in itertools.product((0, 8), (0, 7, 14))]
        masses, probabilities, parts = [], [], []
        for place in places:
            tile = data[(slice(None), *place)][None]
            with torch.no_grad():
                output = alone.network.eval()(tile)
            masses.append(float((output.segmentation.softmax(1)[0, 2] * gaussian).sum()))
            probabilities.append(float(output.classification["subtype"].softmax(1)[0, chosen]))
            parts.append(tile_saliency(alone.network, tile, {"subtype": chosen})["subtype"])
        order = np.argsort(probabilities)[::-1]
        shares = np.zeros(6)
        shares[order[: {"max": 1, "top3": 3}.get(aggregation, 6)]] = 1
        shares = np.array(masses) if aggregation == "evidence" else shares
        total, weights = torch.zeros(data.shape[1:]), torch.zeros(data.shape[1:])
        for place, part, share in zip(places, parts, shares / shares.sum(), strict=True):
            total[place] += part * gaussian * share
            weights[place] += gaussian
        expected += total / weights / 2
    assert expected.max() > 0
    torch.testing.assert_close(maps["subtype"], expected, rtol=1e-4, atol=2e-3 * float(expected.max()))


def test_the_logit_of_the_decision_is_explained() -> None:
    tasks = {kind: ClassificationTask(name="t", classes=("a", "b", "c"), type=kind) for kind in TYPES}
    probabilities = np.array([0.1, 0.2, 0.4])
    assert [explained_logit(tasks[kind], probabilities) for kind in TYPES] == [2, 2, 0]


# --- on the grid of the image


def test_a_map_lies_on_the_grid_of_its_image_after_cropping_resampling_and_transposing(tmp_path) -> None:
    content = plans(spacing=(1.25, 1.0, 0.8))
    content["transpose_forward"], content["transpose_backward"] = [2, 0, 1], [1, 2, 0]
    head = hand_set_head("task", "multiclass", "mean_max", "case")
    predictor = known_predictor({"task": head}, content)
    array = image_with((9, 5), (-9, 3))[0]
    array[:, :, 44:] = 0  # is cropped away
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.9, 1.1, 1.3))
    image.SetOrigin((-3.5, 12.25, 40.0))
    image.SetDirection((0.0, 0.0, -1.0, 0.6, 0.8, 0.0, 0.8, -0.6, 0.0))
    (tmp_path / "in").mkdir()
    sitk.WriteImage(image, str(tmp_path / "in" / "case_0000.nii.gz"))
    predictor.predict_from_files(str(tmp_path / "in"), str(tmp_path / "out"), save_classification=True, classification_options=MAPS)
    found = sitk.ReadImage(str(tmp_path / "out" / "saliency" / "case_task.nii.gz"))
    stored = sitk.ReadImage(str(tmp_path / "in" / "case_0000.nii.gz"))
    assert found.GetPixelID() == sitk.sitkFloat32
    assert found.GetSize() == stored.GetSize()
    for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(found, geometry)(), getattr(stored, geometry)(), atol=1e-6)
    values = sitk.GetArrayFromImage(found)
    assert (values.min(), values.max()) == (0, 1)
    assert not values[:, :, 44:].any()
    assert mass_at(values, FIRST) > 0.95
    centre = (np.stack(np.indices(SHAPE)) * values).sum(axis=(1, 2, 3)) / values.sum()
    np.testing.assert_allclose(centre, FIRST, atol=0.5)


@pytest.mark.parametrize("reader", ["NaturalImage2DIO", "Tiff3DIO"])
def test_images_without_geometry_get_a_nifti_map_too(tmp_path, reader) -> None:
    two_dimensional = reader == "NaturalImage2DIO"
    ending = ".png" if two_dimensional else ".tif"
    content = plans(dimensions=2 if two_dimensional else 3)
    content["image_reader_writer"] = reader
    predictor = known_predictor({"task": hand_set_head("task", "multiclass", "mean_max", "patch")}, content, file_ending=ending)
    pixels = np.clip(image_with((9, 5), (0, 3))[0], 0, 255).astype(np.uint8) + 1
    (tmp_path / "in").mkdir()
    if two_dimensional:
        from skimage import io

        io.imsave(str(tmp_path / "in" / "case_0000.png"), pixels[FIRST[0]], check_contrast=False)
    else:
        import tifffile

        tifffile.imwrite(tmp_path / "in" / "case_0000.tif", pixels, photometric="minisblack")
        (tmp_path / "in" / "case.json").write_text('{"spacing": [1, 1.5, 1]}')
    predictor.predict_from_files(str(tmp_path / "in"), str(tmp_path / "out"), save_classification=True, classification_options=MAPS)
    found = sitk.ReadImage(str(tmp_path / "out" / "saliency" / "case_task.nii.gz"))
    assert found.GetSize() == ((48, 20) if two_dimensional else (48, 20, 16))
    assert found.GetSpacing() == ((1, 1) if two_dimensional else (1, 1.5, 1))
    values = sitk.GetArrayFromImage(found)
    peak = np.unravel_index(values.argmax(), values.shape)
    assert np.abs(np.subtract(peak, FIRST[3 - len(peak) :])).max() <= 5


# --- files


@pytest.fixture(scope="module")
def joint_model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("joint") / "model", folds=(0, 1), classification=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


def predictor_of(model: Path, **options) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(model), (0, 1), **options)
    return predictor


def maps_in(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "saliency").iterdir())


EVERY_MAP = sorted(f"case_{index}_{task}.nii.gz" for index in range(3) for task in CLASSIFICATION)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_case_and_task_gets_a_map_and_nothing_else_changes(pooling, images, tmp_path, monkeypatch) -> None:
    predictor = predictor_of(write_model(tmp_path / "model", folds=(0, 1), classification=True, pooling=pooling))
    arguments = {"save_probabilities": True, "save_classification": True}
    predictor.predict_from_files(str(images), str(tmp_path / "maps"), **arguments, classification_options=MAPS)
    monkeypatch.setattr(predict_from_raw_data, "case_saliency", None)  # whoever asks for none pays for none
    predictor.predict_from_files(str(images), str(tmp_path / "plain"), **arguments)
    assert maps_in(tmp_path / "maps") == EVERY_MAP
    assert not (tmp_path / "plain" / "saliency").exists()
    for file in sorted((tmp_path / "plain").iterdir()):
        if file.suffix in (".gz", ".csv"):
            assert file.read_bytes() == (tmp_path / "maps" / file.name).read_bytes(), file.name
        if file.suffix == ".npz":
            stored, plain = np.load(tmp_path / "maps" / file.name), np.load(file)
            assert all(np.array_equal(stored[name], plain[name]) for name in plain.files)
    for name in EVERY_MAP:
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "maps" / "saliency" / name)))
        assert values.shape == (20, 22, 18)
        assert values.min() >= 0
        assert values.max() in (0, 1)


def test_maps_are_the_same_in_any_way_of_predicting(joint_model, images, tmp_path, monkeypatch) -> None:
    predictor = predictor_of(joint_model)
    predictor.predict_from_files_sequential(str(images), str(tmp_path / "one"), save_classification=True, classification_options=MAPS)
    monkeypatch.setattr(predict_from_raw_data, "worthwhile_processes", lambda files, number: number)
    for part in (1, 0):
        predictor.predict_from_files(
            str(images), str(tmp_path / "parts"), num_processes_preprocessing=2, num_processes_segmentation_export=2,
            num_parts=2, part_id=part, save_classification=True, classification_options=MAPS,
        )  # fmt: skip
    assert maps_in(tmp_path / "one") == maps_in(tmp_path / "parts") == EVERY_MAP
    for name in EVERY_MAP:
        assert (tmp_path / "one" / "saliency" / name).read_bytes() == (tmp_path / "parts" / "saliency" / name).read_bytes()
    files = [[str(images / "case_1_0000.nii.gz")]]
    (tmp_path / "list").mkdir()
    predictor.predict_from_files(
        files, [str(tmp_path / "list" / "other")], save_classification=tmp_path / "t.csv", classification_options=MAPS
    )
    assert maps_in(tmp_path / "list") == sorted(f"other_{task}.nii.gz" for task in CLASSIFICATION)


def test_continuing_writes_the_maps_that_are_missing(joint_model, images, tmp_path) -> None:
    predictor, out = predictor_of(joint_model), tmp_path / "out"
    predictor.predict_from_files(str(images), str(out), save_classification=True)
    tables = [(out / "classification.csv").read_bytes()]
    again = {"save_classification": True, "classification_options": MAPS, "overwrite": False}
    predictor.predict_from_files(str(images), str(out), **again)
    assert maps_in(out) == EVERY_MAP
    whole = {name: (out / "saliency" / name).read_bytes() for name in EVERY_MAP}
    (out / "saliency" / "case_0_grade.nii.gz").unlink()
    (out / "saliency" / "case_2_subtype.nii.gz").write_bytes(whole["case_2_subtype.nii.gz"][:200])
    untouched = (out / "saliency" / "case_1_subtype.nii.gz").stat().st_mtime_ns
    predictor.predict_from_files(str(images), str(out), **again)
    assert {name: (out / "saliency" / name).read_bytes() for name in EVERY_MAP} == whole
    assert (out / "saliency" / "case_1_subtype.nii.gz").stat().st_mtime_ns == untouched
    tables.append((out / "classification.csv").read_bytes())
    assert tables[0] == tables[1]


def test_classes_alone_have_maps_too(joint_model, images, tmp_path) -> None:
    predictor, out = predictor_of(joint_model), tmp_path / "out"
    options = {"save_classification": True, "classification_options": ClassificationOptions(saliency=True, only=True)}
    predictor.predict_from_files(str(images), str(out), **options)
    assert maps_in(out) == EVERY_MAP
    assert not list(out.glob("*.nii.gz"))
    whole = (out / "saliency" / EVERY_MAP[0]).read_bytes()
    (out / "saliency" / EVERY_MAP[0]).unlink()
    predictor.predict_from_files(str(images), str(out), **options, overwrite=False)
    assert (out / "saliency" / EVERY_MAP[0]).read_bytes() == whole


def test_a_case_that_fails_has_no_map_and_no_class(joint_model, images, tmp_path, monkeypatch) -> None:
    predictor = predictor_of(joint_model)
    real = predict_from_raw_data.write_saliency

    def fail_once(maps, output, *others) -> None:
        if output.endswith("case_1"):
            raise OSError("the disk is full")
        real(maps, output, *others)

    monkeypatch.setattr(predict_from_raw_data, "write_saliency", fail_once)
    with pytest.raises(RuntimeError, match="case_1.*the disk is full"):
        predictor.predict_from_files(str(images), str(tmp_path), save_classification=True, classification_options=MAPS)
    assert not (tmp_path / "case_1.nii.gz").exists()  # a case with a segmentation counts as complete
    assert set(read_classification_csv(tmp_path / "classification.csv", predictor.classification_tasks)) == {"case_0", "case_2"}


def test_what_cannot_be_written_is_refused_before_anything_is_predicted(joint_model, images, tmp_path) -> None:
    predictor = predictor_of(joint_model)
    with pytest.raises(ValueError, match="Saliency is asked for, but nowhere to write the classes"):
        predictor.predict_from_files(str(images), str(tmp_path / "out"), classification_options=MAPS)
    with pytest.raises(ValueError, match="no output is given"):
        predictor.predict_from_files(str(images), None, save_classification=tmp_path / "t.csv", classification_options=MAPS)
    plain = predictor_of(write_model(tmp_path / "plain", folds=(0, 1)))
    with pytest.raises(ValueError, match="no classification heads"):
        plain.predict_from_files(str(images), str(tmp_path / "out"), save_classification=True, classification_options=MAPS)
    with pytest.raises(ValueError, match="no classification heads"):
        plain.predict_case(np.zeros((1, 16, 16, 16), np.float32), {"spacing": [1, 1, 1]}, classification_options=MAPS)
    assert not (tmp_path / "out").exists()


def test_maps_of_the_same_name_are_refused() -> None:
    assert saliency_file("out/a_b", "c") == str(Path("out/saliency/a_b_c.nii.gz"))
    check_saliency_files(["out/a", "out/b", "other/a"], ["c", "b_c"])
    with pytest.raises(ValueError, match="case a, task b_c, and case a_b, task c"):
        check_saliency_files(["out/a", "out/a_b"], ["c", "b_c"])

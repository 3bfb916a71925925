from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage import io
from stock_nnunet import run_reference
from tiny_datasets import PLANS

from nnunetv2.cli.plot_overlay_pngs import main
from nnunetv2.utilities import overlay_plots as forwarder
from nnunetv2.utilities.overlay_plots import (
    color_cycle,
    generate_overlay,
    generate_overlays_from_preprocessed,
    hex_to_rgb,
    select_slice_to_plot,
    select_slice_to_plot2,
)

BLUE = np.array(hex_to_rgb(color_cycle[1]))


def test_labels_are_coloured_and_the_rest_is_stretched_from_black_to_white() -> None:
    image = np.array([[-50.0, 0.0], [50.0, 150.0]])
    before = image.copy()
    picture = generate_overlay(image, np.array([[0, 1], [0, 0]]))
    expected = np.repeat((image[..., None] + 50) / 200 * 255, 3, axis=2)
    expected[0, 1] += 0.6 * BLUE
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected.astype(np.uint8))
    np.testing.assert_array_equal(image, before)


def test_the_brightest_voxel_stays_within_the_range() -> None:
    picture = generate_overlay(np.array([[0.0, 10.0]]), np.array([[0, 2]]), mapping={2: 1})
    np.testing.assert_array_equal(picture[0, 1], ((255 + 0.6 * BLUE) / (255 + 0.6 * BLUE.max()) * 255).astype(np.uint8))


def test_without_a_mapping_colours_follow_the_order_of_the_labels_and_begin_again() -> None:
    segmentation = np.arange(20)[None] * 3
    picture = generate_overlay(np.zeros((1, 20)), segmentation)
    assert (picture[0, 0] == 0).all()
    np.testing.assert_array_equal(picture[0, 16], picture[0, 1])
    assert len(np.unique(picture[0, :15], axis=0)) == 15


def test_images_without_contrast_or_with_gaps_and_coloured_ones_are_shown() -> None:
    segmentation = np.array([[0, 1]])
    for image in (np.full((1, 2), 7.0), np.array([[np.nan, np.nan]]), np.array([[np.nan, 3.0]]), np.zeros((1, 2, 3))):
        picture = generate_overlay(image, segmentation)
        assert (picture[0, 0] == 0).all()
        assert picture[0, 1, 2] > 100
    with pytest.raises(ValueError, match="do not fit"):
        generate_overlay(np.zeros((2, 2)), segmentation)


def test_only_names_of_overlay_plots_are_forwarded() -> None:
    assert len(forwarder.color_cycle) == 15
    assert not hasattr(forwarder, "nothing_of_this_name")


def test_the_slice_shows_most_voxels_or_most_of_all_classes() -> None:
    segmentation = np.zeros((5, 4, 4), np.int16)
    segmentation[1] = 1  # most voxels
    segmentation[2, :3] = 1
    segmentation[2, 3] = 2  # nearly as many of 1, and all of 2
    segmentation[4, 0, 0] = 1
    assert select_slice_to_plot(segmentation, segmentation) == 1
    assert select_slice_to_plot2(segmentation, segmentation) == 2
    assert select_slice_to_plot2(segmentation, np.minimum(segmentation * 0, -1)) == 0


@pytest.fixture
def raw(nnunet_folders: dict[str, Path]) -> Path:
    """Two cases of two channels; slice 3 shows all labels."""
    folder = nnunet_folders["raw"] / "Dataset005_Pictures"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    generator = np.random.default_rng(0)
    for index in range(2):
        segmentation = np.zeros((6, 12, 10), np.uint8)
        for value in (1, 2, 3):
            segmentation[3, 3 * value - 2 : 3 * value, 2 : 5 + index] = value
            segmentation[4, 3 * value - 2, 3] = value
        sitk.WriteImage(sitk.GetImageFromArray(segmentation), str(folder / "labelsTr" / f"c{index}.nii.gz"))
        for channel in (0, 1):
            image = generator.normal(100, 20, segmentation.shape).astype(np.float32) + segmentation * 10 * channel
            sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "imagesTr" / f"c{index}_{channel:04d}.nii.gz"))
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    content = {"channel_names": {"0": "MR", "1": "noNorm"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_raw_cases_become_pictures_of_the_chosen_channel(raw, tmp_path, capsys) -> None:
    main(["-d", "5", "-o", str(tmp_path / "out"), "--use_raw", "-np", "1", "-channel_idx", "1", "-overlay_intensity", "0.3"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c0.png", "c1.png"]
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / "c1_0001.nii.gz")))
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr" / "c1.nii.gz")))
    expected = generate_overlay(image[3], segmentation[3], overlay_intensity=0.3)
    np.testing.assert_array_equal(io.imread(tmp_path / "out" / "c1.png")[..., :3], expected)
    with pytest.raises(SystemExit):
        main(["-d", "5", "-o", str(tmp_path / "none"), "--use_raw", "-channel_idx", "2"])
    assert "c0, c1: no channel 2" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_label_has_one_colour_in_all_pictures(raw, tmp_path) -> None:
    file = raw / "labelsTr" / "c1.nii.gz"
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    sitk.WriteImage(sitk.GetImageFromArray(np.where(segmentation == 3, 3, 0).astype(np.uint8)), str(file))
    for index in (0, 1):  # without contrast, so that the colours alone are seen
        flat = sitk.GetImageFromArray(np.full(segmentation.shape, 7, np.int16))
        sitk.WriteImage(flat, str(raw / "imagesTr" / f"c{index}_0000.nii.gz"))
    main(["-d", "5", "-o", str(tmp_path / "out"), "--use_raw", "-np", "1"])
    colours = [io.imread(tmp_path / "out" / f"c{index}.png")[7, 2, :3].astype(float) for index in (0, 1)]
    for colour in colours:
        np.testing.assert_allclose(colour / colour.max(), np.divide(hex_to_rgb(color_cycle[3]), max(hex_to_rgb(color_cycle[3]))), atol=0.02)


def test_preprocessed_cases_become_pictures(tiny_training, tmp_path, capsys) -> None:
    main(["-d", "2", "-o", str(tmp_path / "3d"), "-p", PLANS, "-np", "1"])
    generate_overlays_from_preprocessed(2, str(tmp_path / "2d"), num_processes=1, configuration="2d", plans_identifier=PLANS)
    for folder in ("3d", "2d"):
        assert len(list((tmp_path / folder).glob("case_00?.png"))) == 10
    picture = io.imread(tmp_path / "3d" / "case_000.png")
    assert picture[..., :3].std(axis=2).max() > 20  # there is colour
    for options, message in ((["-c", "3d_lowres"], "no configuration '3d_lowres'"), (["-channel_idx", "1"], "no channel 1; it has 1")):
        with pytest.raises(SystemExit):
            main(["-d", "2", "-o", str(tmp_path / "x"), "-p", PLANS, "-np", "1", *options])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["2", "-0.1", "much"])
def test_a_wrong_intensity_is_an_error(value, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["-d", "5", "-o", "x", "-overlay_intensity", value])
    assert "-overlay_intensity" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_are_those_of_stock_nnunet(reference, raw, nnunet_folders, tmp_path) -> None:
    folders = {f"nnUNet_{name}": folder for name, folder in nnunet_folders.items()}
    options = ["-d", "5", "--use_raw", "-np", "1", "-channel_idx", "1"]
    run_reference(reference / "nnUNetv2_plot_overlay_pngs", "-o", tmp_path / "stock", *options, **folders)
    main(["-o", str(tmp_path / "ours"), *options])
    for name in ("c0.png", "c1.png"):
        pictures = [io.imread(tmp_path / side / name).astype(int) for side in ("ours", "stock")]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1

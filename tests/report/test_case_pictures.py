"""Which slice is shown, how it is turned, and what is drawn on it."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.report.case_pictures import LoadedCase, axis_directions, draw_case, load_case, read_saliency, slice_to_show, view_of
from nnunetv2.report.content import CaseFiles


def loaded(
    image: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1), directions: Any = None, **segmentations: np.ndarray
) -> LoadedCase:
    return LoadedCase(image=image[None], spacing=spacing, directions=directions, **segmentations)


def pixels(address: str) -> np.ndarray:
    """RGB of a picture in a data address."""
    start = "data:image/png;base64,"
    assert address.startswith(start)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address[len(start) :]))).convert("RGB")).astype(int)


def share_of_colour(picture: np.ndarray, colour: str) -> float:
    """Share of pixels near a colour such as ``#e69f00``."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return float((np.abs(picture - wanted).sum(axis=-1) < 60).mean())


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "ASL", "SRA"])
@pytest.mark.parametrize("reader", [SimpleITKIO(), NibabelIO(), NibabelIOWithReorient()])
def test_pictures_do_not_depend_on_how_the_file_stores_its_axes(orientation: str, reader: Any, tmp_path) -> None:
    volume = np.zeros((6, 10, 12), np.float32)  # superior, posterior, left
    volume[3, 1, 10] = 1  # in front, on the left
    image = sitk.DICOMOrient(sitk.GetImageFromArray(volume), orientation)
    sitk.WriteImage(image, str(tmp_path / "case_0000.nii.gz"))
    case = load_case(CaseFiles(images=(str(tmp_path / "case_0000.nii.gz"),)), reader)
    view = view_of(case)
    assert view.plane == "axial" and view.letters == ("R", "A")
    slices = [view.slice(case.image[0], index) for index in range(case.image.shape[1 + view.axis])]
    shown = max(slices, key=np.max)
    assert shown.shape == (10, 12)
    assert np.unravel_index(shown.argmax(), shown.shape) == (1, 10)


def test_head_is_up_in_coronal_and_sagittal_slices() -> None:
    volume = np.arange(24.0).reshape(2, 3, 4)
    coronal = view_of(loaded(volume, (1, 5, 1), ("S", "P", "L")))
    assert (coronal.plane, coronal.letters) == ("coronal", ("R", "S"))
    np.testing.assert_array_equal(coronal.slice(volume, 1), volume[::-1, 1])
    sagittal = view_of(loaded(volume, (1, 1, 5), ("S", "P", "L")))
    assert (sagittal.plane, sagittal.letters) == ("sagittal", ("A", "S"))
    np.testing.assert_array_equal(sagittal.slice(volume, 2), volume[::-1, :, 2])


def test_oblique_axes_get_different_letters_and_2d_files_none() -> None:
    angle = np.deg2rad(44)
    direction = (np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1)
    assert axis_directions({"sitk_stuff": {"spacing": (1, 1, 1), "direction": direction}}) == ("S", "P", "L")
    assert axis_directions({"sitk_stuff": {"spacing": (1, 1), "direction": (1, 0, 0, 1)}}) is None
    assert axis_directions({"spacing": (999, 1, 1)}) is None


def test_the_slice_with_most_disagreement_or_most_structure_is_shown() -> None:
    reference, prediction = np.zeros((2, 5, 8, 8), int)
    reference[1, :6, :6] = prediction[1, :6, :6] = 1
    reference[3, :2, :2] = 1
    case = loaded(np.zeros((5, 8, 8)), (3, 1, 1), reference=reference, prediction=prediction)
    view = view_of(case)
    assert slice_to_show(case, view, [1], of_disagreement=True) == 3
    assert slice_to_show(case, view, [1], of_disagreement=False) == 1
    assert slice_to_show(case, view, [2], of_disagreement=True) == 2  # nothing there: the middle
    only_predicted = loaded(np.zeros((5, 8, 8)), (3, 1, 1), prediction=reference)
    assert slice_to_show(only_predicted, view, [1], of_disagreement=True) == 1


def test_outlines_are_drawn_in_the_colour_of_their_structure() -> None:
    image = np.random.default_rng(0).random((1, 64, 64)) * 0.1
    reference, prediction = np.zeros((2, 1, 64, 64), int)
    reference[0, 20:40, 20:40], prediction[0, 25:45, 20:40] = 1, 2
    structures = {"organ": 1, "lesion": 2}
    both = pixels(draw_case(loaded(image, (999, 1, 1), reference=reference, prediction=prediction), structures).overlay)
    solid, dashed = share_of_colour(both, "#56b4e9"), share_of_colour(both, "#e69f00")
    assert solid > 1.3 * dashed > 0  # the reference has no gaps
    nothing = pixels(draw_case(loaded(image, (999, 1, 1)), structures).overlay)
    assert share_of_colour(nothing, "#56b4e9") == share_of_colour(nothing, "#e69f00") == 0


def test_small_structures_are_enlarged_and_the_aspect_follows_the_spacing() -> None:
    image = np.zeros((1, 100, 100))
    image[0, :50] = 1
    reference = np.zeros((1, 100, 100), int)
    reference[0, 5:8, 5:8] = 1
    enlarged = pixels(draw_case(loaded(image, (999, 1, 1), reference=reference), {"organ": 1}).overlay)
    assert (enlarged[-10:] > 250).all()  # the dark lower half of the image is cut off
    flat = pixels(draw_case(loaded(image, (999, 1, 2)), {}).overlay)
    assert flat.shape[1] == pytest.approx(2 * flat.shape[0], abs=2)


def test_what_there_is_to_see_is_said_in_words() -> None:
    reference = np.zeros((4, 8, 8), int)
    reference[2] = 1
    picture = draw_case(loaded(np.zeros((4, 8, 8)), (5, 1, 1), reference=reference), {"organ": 1})
    assert picture.where == "slice 3 of 4"
    assert picture.text == "Image, slice 3 of 4. reference outlines: organ; prediction outlines: none."


def test_saliency_is_drawn_over_the_same_slice_or_its_lack_is_explained(tmp_path) -> None:
    heat = np.zeros((3, 40, 40), np.float32)
    heat[1, 10:20, 10:20] = 5
    sitk.WriteImage(sitk.GetImageFromArray(heat), str(tmp_path / "case_grade.nii.gz"))
    files = CaseFiles(saliency_folders=(tmp_path,))
    found, note = read_saliency("case", "grade", files, SimpleITKIO(), (3, 40, 40))
    assert note == "" and found.max() == 5
    picture = draw_case(loaded(np.zeros((3, 40, 40)), (4, 1, 1)), {}, saliency=found)
    shown = pixels(picture.saliency)
    bright = shown.sum(axis=-1) > 300
    rows, columns = np.nonzero(bright)
    assert 0.2 < rows.mean() / len(shown) < 0.55 and 0.2 < columns.mean() / len(shown) < 0.55
    assert read_saliency("case", "other", files, SimpleITKIO(), (3, 40, 40)) == (None, "")
    assert "another voxel grid" in read_saliency("case", "grade", files, SimpleITKIO(), (3, 40, 41))[1]
    (tmp_path / "case_broken.nii.gz").write_bytes(b"no image")
    assert "cannot be read" in read_saliency("case", "broken", files, SimpleITKIO(), (3, 40, 40))[1]


@pytest.mark.parametrize("reader", [SimpleITKIO(), NibabelIOWithReorient()])
def test_a_saliency_map_is_turned_like_its_image(reader: Any, tmp_path) -> None:
    values = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    stored = sitk.DICOMOrient(sitk.GetImageFromArray(values), "PIR")
    for name in ("case_0000", "case_grade"):
        sitk.WriteImage(stored, str(tmp_path / f"{name}.nii.gz"))
    case = load_case(CaseFiles(images=(str(tmp_path / "case_0000.nii.gz"),)), reader)
    found, _ = read_saliency("case", "grade", CaseFiles(saliency_folders=(tmp_path,)), reader, case.image.shape[1:])
    np.testing.assert_array_equal(found, case.image[0])


def test_the_map_of_a_picture_is_read_as_nifti(tmp_path) -> None:
    flat = np.arange(20, dtype=np.float32).reshape(4, 5)
    sitk.WriteImage(sitk.GetImageFromArray(flat), str(tmp_path / "case_grade.nii.gz"))
    found, _ = read_saliency("case", "grade", CaseFiles(saliency_folders=(tmp_path,)), NaturalImage2DIO(), (1, 4, 5))
    np.testing.assert_array_equal(found[0], flat)


def test_a_segmentation_that_does_not_fit_is_a_note(tmp_path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.float32)), str(tmp_path / "case_0000.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 6), np.uint8)), str(tmp_path / "case.nii.gz"))
    case = load_case(CaseFiles(images=(str(tmp_path / "case_0000.nii.gz"),), prediction=str(tmp_path / "case.nii.gz")), SimpleITKIO())
    assert case.reference is None and case.prediction is None
    assert case.notes[0] == "There is no reference segmentation." and "another voxel grid" in case.notes[1]

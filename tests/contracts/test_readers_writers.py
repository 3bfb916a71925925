"""What every reader/writer promises, one suite for all of them."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from skimage import io as skimage_io

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

SHAPE = (5, 6, 7)
SPACING = (3.0, 0.5, 0.25)  # z, y, x; exact in float32
# x axis of the file points to posterior, y to superior, z to right: every reorientation moves all axes
OBLIQUE_DIRECTION = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_itk(voxels: np.ndarray, file: Path, spacing: tuple[float, ...] = SPACING) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((1.0, 2.0, 3.0))
    image.SetDirection(OBLIQUE_DIRECTION)
    sitk.WriteImage(image, str(file))


def write_nifti(voxels: np.ndarray, file: Path, spacing: tuple[float, ...] = SPACING) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([-1.0, -1, 1]) @ np.reshape(OBLIQUE_DIRECTION, (3, 3))) * spacing[::-1]
    affine[:3, 3] = (-1, -2, 3)
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine), file)


def write_tif(voxels: np.ndarray, file: Path, spacing: tuple[float, ...] = SPACING) -> None:
    tifffile.imwrite(file, voxels, photometric="minisblack")
    stem = file.name.removesuffix(file.suffix)
    file.with_name((stem[:-5] if stem.endswith("_0000") else stem) + ".json").write_text(json.dumps({"spacing": spacing}))


def write_natural(voxels: np.ndarray, file: Path, spacing: tuple[float, ...] = ()) -> None:
    skimage_io.imsave(str(file), voxels[0], check_contrast=False)


FORMATS: list[tuple[type[BaseReaderWriter], str, Callable[..., None]]] = [
    (SimpleITKIO, ".nii.gz", write_itk),
    (SimpleITKIO, ".nrrd", write_itk),
    (SimpleITKIO, ".mha", write_itk),
    (SimpleITKIOWithReorient, ".nii.gz", write_itk),
    (SimpleITKIOWithReorient, ".mha", write_itk),
    (NibabelIO, ".nii.gz", write_nifti),
    (NibabelIO, ".nii", write_nifti),
    (NibabelIOWithReorient, ".nii.gz", write_nifti),
    (Tiff3DIO, ".tif", write_tif),
    (Tiff3DIO, ".tiff", write_tif),
    (NaturalImage2DIO, ".png", write_natural),
    (NaturalImage2DIO, ".bmp", write_natural),
    (NaturalImage2DIO, ".tif", write_natural),
]
every_format = pytest.mark.parametrize(("reader", "ending", "write"), FORMATS, ids=lambda value: getattr(value, "__name__", value))


def image_of(reader: type[BaseReaderWriter]) -> np.ndarray:
    shape = (1, *SHAPE[1:]) if reader is NaturalImage2DIO else SHAPE
    return (np.arange(np.prod(shape)).reshape(shape)).astype(np.uint8)


@every_format
def test_images_are_float32_with_channel_axis_and_three_spacings(reader, ending, write, tmp_path: Path) -> None:
    voxels = image_of(reader)
    write(voxels, tmp_path / f"case_0000{ending}")
    image, properties = reader().read_images((str(tmp_path / f"case_0000{ending}"),))
    assert image.dtype == np.float32 and image.ndim == 4 and image.shape[0] == 1
    assert np.array_equal(np.sort(image, axis=None), np.sort(voxels, axis=None))
    assert len(properties["spacing"]) == 3
    if reader is NaturalImage2DIO:
        assert tuple(properties["spacing"]) == (999, 1, 1)
    else:
        assert sorted(properties["spacing"]) == sorted(SPACING)


@every_format
def test_segmentations_are_read_on_the_grid_of_the_image(reader, ending, write, tmp_path: Path) -> None:
    voxels = image_of(reader)
    write(voxels, tmp_path / f"case_0000{ending}")
    write(voxels, tmp_path / f"label{ending}")
    image, of_image = reader().read_images([str(tmp_path / f"case_0000{ending}")])
    seg, of_seg = reader().read_seg(str(tmp_path / f"label{ending}"))
    assert seg.dtype == np.float32
    assert np.array_equal(seg, image)
    assert np.allclose(of_seg["spacing"], of_image["spacing"])


@every_format
@pytest.mark.parametrize(("largest", "dtype"), [(2, np.uint8), (254, np.uint8), (255, np.uint16), (300, np.uint16)])
def test_a_written_segmentation_comes_back_unchanged(reader, ending, write, largest: int, dtype: type, tmp_path: Path) -> None:
    if ending == ".bmp" and dtype == np.uint16:
        pytest.skip("bmp holds 8 bits")
    write(image_of(reader), tmp_path / f"case_0000{ending}")
    image, properties = reader().read_images([str(tmp_path / f"case_0000{ending}")])
    seg = np.zeros(image.shape[1:], dtype=np.int64)
    seg[0, 0, 0], seg[0, 1, 0], seg[-1, -1, -1] = largest, 1, 2
    reader().write_seg(seg, str(tmp_path / f"out{ending}"), properties)
    again, properties_again = reader().read_seg(str(tmp_path / f"out{ending}"))
    assert np.array_equal(again[0], seg)
    assert np.allclose(properties_again["spacing"], properties["spacing"])
    assert stored_dtype(tmp_path / f"out{ending}") == dtype
    assert not list(tmp_path.glob("*tmp*")), "temporary files must be gone"


@every_format
def test_a_map_is_a_nifti_file_on_the_grid_of_the_image(reader, ending, write, tmp_path: Path) -> None:
    write(image_of(reader), tmp_path / f"case_0000{ending}")
    image, properties = reader().read_images([str(tmp_path / f"case_0000{ending}")])
    reader().write_map(image[0] / 7, str(tmp_path / "map.nii.gz"), properties)
    found = sitk.ReadImage(str(tmp_path / "map.nii.gz"))
    assert found.GetPixelID() == sitk.sitkFloat32
    # the voxels of the file, not those that a reader turned round
    expected = image_of(reader)[0] if reader is NaturalImage2DIO else image_of(reader)
    np.testing.assert_allclose(sitk.GetArrayFromImage(found) * 7, expected, rtol=1e-6)
    if write in (write_itk, write_nifti):
        original = sitk.ReadImage(str(tmp_path / f"case_0000{ending}"))
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(found, geometry)(), getattr(original, geometry)(), atol=1e-6)
    else:
        assert found.GetSpacing() == (SPACING[::-1] if reader is Tiff3DIO else (1, 1))
    assert not list(tmp_path.glob("*tmp*")), "temporary files must be gone"


def stored_dtype(file: Path) -> np.dtype:
    if file.name.endswith((".nii", ".nii.gz")):
        return nibabel.load(file).get_data_dtype()
    if file.suffix in (".nrrd", ".mha"):
        return sitk.GetArrayFromImage(sitk.ReadImage(str(file))).dtype
    return skimage_io.imread(file).dtype


@every_format
def test_channels_are_stacked_in_the_given_order(reader, ending, write, tmp_path: Path) -> None:
    voxels = image_of(reader)
    write(voxels, tmp_path / f"case_0000{ending}")
    write(voxels + 1, tmp_path / f"case_0001{ending}")
    image, _ = reader().read_images([str(tmp_path / f"case_000{channel}{ending}") for channel in (1, 0)])
    assert image.shape[0] == 2
    assert np.array_equal(image[0], image[1] + 1)


@every_format
def test_channels_of_different_shape_are_refused_by_name(reader, ending, write, tmp_path: Path) -> None:
    voxels = image_of(reader)
    write(voxels, tmp_path / f"case_0000{ending}")
    write(voxels[:, 1:], tmp_path / f"case_0001{ending}")
    with pytest.raises(RuntimeError, match="shapes") as caught:
        reader().read_images([str(tmp_path / f"case_000{channel}{ending}") for channel in (0, 1)])
    assert "case_0001" in str(caught.value)


@every_format
def test_a_truncated_file_is_an_error_that_names_it(reader, ending, write, tmp_path: Path) -> None:
    file = tmp_path / f"case_0000{ending}"
    write(image_of(reader), file)
    file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(RuntimeError, match="case_0000"):
        reader().read_images([str(file)])


@every_format
def test_a_missing_file_is_an_error_that_names_it(reader, ending, write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="case_0000"):
        reader().read_images([str(tmp_path / f"case_0000{ending}")])


@every_format
@pytest.mark.parametrize("label", [-1, 70000])
def test_labels_that_no_file_can_hold_are_refused(reader, ending, write, label: int, tmp_path: Path) -> None:
    write(image_of(reader), tmp_path / f"case_0000{ending}")
    image, properties = reader().read_images([str(tmp_path / f"case_0000{ending}")])
    with pytest.raises(ValueError, match="between 0 and 65535"):
        reader().write_seg(np.full(image.shape[1:], label), str(tmp_path / f"out{ending}"), properties)
    assert not (tmp_path / f"out{ending}").exists()


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
def test_nifti_output_lies_where_the_image_lies(reader, tmp_path: Path) -> None:
    write_nifti(image_of(reader), tmp_path / "case_0000.nii.gz")
    image, properties = reader().read_images([str(tmp_path / "case_0000.nii.gz")])
    marked = (image[0] == 14).astype(np.uint8)
    reader().write_seg(marked, str(tmp_path / "out.nii.gz"), properties)
    original, written = nibabel.load(tmp_path / "case_0000.nii.gz"), nibabel.load(tmp_path / "out.nii.gz")
    assert np.allclose(written.affine, original.affine, atol=1e-5)
    assert np.array_equal(np.asarray(written.dataobj) == 1, np.asarray(original.dataobj) == 14)


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_channels_at_different_positions_only_warn(reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voxels = image_of(reader)
    write_nifti(voxels, tmp_path / "case_0000.nii.gz")
    moved = nibabel.load(tmp_path / "case_0000.nii.gz")
    affine = moved.affine.copy()
    affine[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(moved.dataobj), affine), tmp_path / "case_0001.nii.gz")
    image, _ = reader().read_images([str(tmp_path / f"case_000{channel}.nii.gz") for channel in (0, 1)])
    assert image.shape[0] == 2
    printed = capsys.readouterr().out
    assert "WARNING" in printed and "case_0001" in printed


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
def test_channels_of_different_spacing_are_refused(reader, tmp_path: Path) -> None:
    write_nifti(image_of(reader), tmp_path / "case_0000.nii.gz")
    write_nifti(image_of(reader), tmp_path / "case_0001.nii.gz", spacing=(3.0, 0.5, 0.5))
    with pytest.raises(RuntimeError, match="spacings"):
        reader().read_images([str(tmp_path / f"case_000{channel}.nii.gz") for channel in (0, 1)])


@contextmanager
def room_for_little() -> Iterator[None]:
    """No file may grow beyond 2000 bytes, as on a disk that is nearly full. No fixture: pytest's own output may go to a file, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITTEN = [(reader, ending) for reader, ending, _ in FORMATS] + [(SimpleITKIO, ".gipl")]


@pytest.mark.parametrize(("reader", "ending"), WRITTEN, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_written_completely_is_an_error_and_leaves_no_file(reader, ending, tmp_path: Path) -> None:
    shape = (1, 80, 80) if reader is NaturalImage2DIO else (20, 20, 20)
    seg = np.random.default_rng(0).integers(0, 250, size=shape).astype(np.uint8)
    geometry = {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": tuple(np.eye(3).ravel())}
    properties = {
        "spacing": [1.0, 1.0, 1.0],
        "sitk_stuff": {**geometry, "original_orientation": "LPS"},
        "nibabel_stuff": {"original_affine": np.eye(4), "reoriented_affine": np.eye(4)},
    }
    with pytest.raises((OSError, RuntimeError)), room_for_little():
        reader().write_seg(seg, str(tmp_path / f"case{ending}"), properties)
    assert not list(tmp_path.iterdir())

"""The memory that a case takes is estimated from its header, and not below what it takes in truth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_models import plans

from nnunetv2.imageio.image_size import ImageSize, image_size, sizes_of_cases
from nnunetv2.preprocessing.memory_need import bytes_to_preprocess, bytes_to_read, enlargement
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

SIZE_ZYX = (80, 160, 160)


def write(path: Path, size: tuple[int, ...] = SIZE_ZYX, spacing_xyz: tuple[float, ...] = (1.0, 1.0, 2.0), dtype=np.int16) -> str:
    image = sitk.GetImageFromArray((np.indices(size).sum(0) % 100).astype(dtype))
    image.SetSpacing(spacing_xyz)
    sitk.WriteImage(image, str(path))
    return str(path)


def test_the_size_is_read_from_the_header(tmp_path: Path) -> None:
    size = image_size(write(tmp_path / "a.nii.gz"))
    assert (size.voxels, size.channels) == (80 * 160 * 160, 1)
    assert size.spacing == pytest.approx((2, 1, 1))
    assert size.shape == (80, 160, 160)
    flat = image_size(write(tmp_path / "a.png", (30, 40), (1.0, 1.0), np.uint8))
    assert (flat.voxels, flat.shape) == (1200, (1, 30, 40))


def test_resolutions_that_readers_ignore_count_for_nothing(tmp_path: Path) -> None:
    assert image_size(write(tmp_path / "a_0000.png", (30, 40), (0.1, 0.1), np.uint8)).spacing is None
    stack = write(tmp_path / "b_0000.tif", (5, 30, 40), (0.1, 0.1, 0.1), np.uint8)
    assert image_size(stack) == ImageSize(5 * 30 * 40, shape=(5, 30, 40))
    (tmp_path / "b.json").write_text('{"spacing": [2, 1, 1.5]}')
    assert image_size(stack).spacing == (2, 1, 1.5)
    (tmp_path / "b.json").write_text('{"spacing": ')
    assert image_size(stack).spacing is None


def test_without_a_readable_header_the_size_of_the_file_counts(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(b"0" * 5000)
    assert image_size(tmp_path / "a.xyz").voxels == 5000
    assert image_size(tmp_path / "missing.nii.gz").voxels == 0


def test_headers_of_the_largest_files_stand_for_the_others(tmp_path: Path) -> None:
    files = {name: [write(tmp_path / f"{name}.nii", (n, 20, 20))] for name, n in (("small", 10), ("large", 40), ("middle", 20))}
    sizes = sizes_of_cases(files, headers_read=2)
    assert [sizes[name][0].voxels for name in ("large", "middle")] == [16000, 8000]
    assert sizes["small"][0].voxels == pytest.approx(4000, rel=0.1)


@pytest.mark.parametrize(("dimensions", "factor"), [(3, 2.0 * 1.5), (2, 1.5)])
def test_finer_spacing_of_the_plans_enlarges_a_case(dimensions: int, factor: float) -> None:
    manager = PlansManager(plans(dimensions))
    configuration = manager.get_configuration(manager.available_configurations[0])
    assert enlargement((2.0, 1.5, 1.0), manager, configuration) == pytest.approx(factor)
    assert enlargement(None, manager, configuration) == 1


PEAK = """
import sys
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
plans, image, label, output = eval(sys.argv[1])
manager = PlansManager(plans)
configuration = manager.get_configuration("3d_fullres")
dataset = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
def run(*files): DefaultPreprocessor(verbose=False).run_case_save(output, *files, manager, configuration, dataset)
from nnunetv2.preprocessing.resampling.label_resampling import compiled_kernel
compiled_kernel()  # of large cases only
run(*eval(sys.argv[2]))  # loads everything else
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
before = kilobytes("VmRSS:")
run([image], label)
print((kilobytes("VmHWM:") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_is_above_the_peak_but_not_far_above(tmp_path: Path) -> None:
    files = {}
    for name, size in (("tiny", (20, 20, 20)), ("case", SIZE_ZYX)):
        image = write(tmp_path / f"{name}_0000.nii.gz", size)
        label = sitk.GetImageFromArray((np.indices(size).sum(0) > 150).astype(np.uint8))
        label.SetSpacing((1.0, 1.0, 2.0))
        sitk.WriteImage(label, str(tmp_path / f"{name}.nii.gz"))
        files[name] = (image, str(tmp_path / f"{name}.nii.gz"))
    arguments = [repr((plans(patch_size=64), *files["case"], str(tmp_path / "out"))), repr(([files["tiny"][0]], files["tiny"][1]))]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    peak = int(done.stdout)
    manager = PlansManager(plans())
    estimate = bytes_to_preprocess([image_size(files["case"][0])], manager, manager.get_configuration("3d_fullres"))
    assert peak <= estimate <= 3 * peak, (peak, estimate)
    assert bytes_to_read([image_size(files["case"][0])]) <= estimate

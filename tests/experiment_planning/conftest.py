"""Small raw datasets, and datasets that have a fingerprint only."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RawFactory = Callable[..., Path]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """nnUNet_raw, nnUNet_preprocessed and nnUNet_results in an empty folder."""
    made = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in made.items():
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    return made


@pytest.fixture
def write_raw_dataset(folders: dict[str, Path]) -> RawFactory:
    """Function that writes a raw dataset of compressed NIfTI files."""
    import SimpleITK as sitk

    def write(
        images: Sequence[np.ndarray],
        segmentations: Sequence[np.ndarray],
        *,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        labels: dict[str, Any] | None = None,
        name: str = "Dataset901_Small",
        **more: Any,
    ) -> Path:
        """Arrays are (c, z, y, x) and (z, y, x), the spacing is z, y, x."""
        folder = folders["nnUNet_raw"] / name
        (folder / "imagesTr").mkdir(parents=True)
        (folder / "labelsTr").mkdir()

        def save(array: np.ndarray, path: Path) -> None:
            image = sitk.GetImageFromArray(array)
            image.SetSpacing([float(s) for s in spacing[::-1]])
            sitk.WriteImage(image, str(path))

        for i, (image, segmentation) in enumerate(zip(images, segmentations, strict=True)):
            for c, channel in enumerate(image):
                save(channel.astype(np.float32), folder / "imagesTr" / f"case_{i:02d}_{c:04d}.nii.gz")
            save(segmentation, folder / "labelsTr" / f"case_{i:02d}.nii.gz")
        description = {
            "channel_names": {str(c): f"MR{c}" for c in range(len(images[0]))},
            "labels": labels or {"background": 0, "blob": 1},
            "numTraining": len(images),
            "file_ending": ".nii.gz",
            **more,
        }
        (folder / "dataset.json").write_text(json.dumps(description))
        return folder

    return write


@pytest.fixture
def write_planning_inputs(folders: dict[str, Path]) -> Callable[..., str]:
    """Function that writes what a planner reads: dataset.json, one readable case, and a fingerprint of identical cases."""

    def write(
        spacings: Sequence[Sequence[float]],
        shape: Sequence[int],
        *,
        num_training: int,
        channels: int = 1,
        labels: int = 2,
        relative_size: float = 1.0,
        channel_name: str = "MR",
        file_ending: str = ".nii.gz",
        name: str = "Dataset902_Planned",
    ) -> str:
        raw, preprocessed = folders["nnUNet_raw"] / name, folders["nnUNet_preprocessed"] / name
        (raw / "imagesTr").mkdir(parents=True)
        (raw / "labelsTr").mkdir()
        preprocessed.mkdir()
        files = [raw / "imagesTr" / f"a_{c:04d}{file_ending}" for c in range(channels)]
        if file_ending == ".png":
            # One colour image holds all channels.
            files = files[:1]
            from skimage.io import imsave

            for path in [*files, raw / "labelsTr" / f"a{file_ending}"]:
                imsave(path, np.zeros((8, 8), np.uint8), check_contrast=False)
        else:
            import SimpleITK as sitk

            for path in [*files, raw / "labelsTr" / f"a{file_ending}"]:
                sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.uint8)), str(path))
        description = {
            "channel_names": {str(c): channel_name for c in range(channels)},
            "labels": {"background": 0, **{f"label{i}": i for i in range(1, labels)}},
            "numTraining": num_training,
            "file_ending": file_ending,
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        statistics = {"max": 1.0, "mean": 0.5, "median": 0.5, "min": 0.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0, "std": 0.2}
        fingerprint = {
            "foreground_intensity_properties_per_channel": {str(c): statistics for c in range(channels)},
            "median_relative_size_after_cropping": relative_size,
            "shapes_after_crop": [list(shape)] * len(spacings),
            "spacings": [list(s) for s in spacings],
        }
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        return name

    return write

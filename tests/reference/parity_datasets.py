"""Raw datasets with regions, with an ignore label and with many voxel sizes, made from one with labels 1 and 2.

    python tests/reference/parity_datasets.py RAW/Dataset004_Hippocampus OUT --cases 40

Writes ``Dataset901_Regions``, ``Dataset902_RegionsIgnore`` and ``Dataset903_Spacings`` into the folder ``OUT``, which then serves as nnUNet_raw in a
comparison with the published nnunetv2. In the second one only every third slice is annotated. In the third one the voxel size differs from case
to case and every third case has thick slices, so that each function of resampling has work to do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import SimpleITK as sitk

REGIONS = {"background": 0, "whole": [1, 2], "posterior": 2}
IGNORE = 3
DATASETS = {
    "Dataset901_Regions": REGIONS,
    "Dataset902_RegionsIgnore": {**REGIONS, "ignore": IGNORE},
    "Dataset903_Spacings": {"background": 0, "anterior": 1, "posterior": 2},
}
THICKNESSES = (1.0, 1.3, 4.0)  # mm, of consecutive cases
PIXELS = (0.8, 0.9, 1.0, 1.1, 1.2)


def make(source: Path, target: Path, labels: dict, cases: int) -> None:
    """One dataset with the first cases of another."""
    description = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    files = sorted((source / "labelsTr").glob(f"*{ending}"))[:cases]
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        identifier = file.name[: -len(ending)]
        image = sitk.ReadImage(str(source / "imagesTr" / f"{identifier}_0000{ending}"))
        segmentation = sitk.ReadImage(str(file))
        if "ignore" in labels:
            segmentation = annotated_in_every_third_slice(segmentation)
        if target.name.endswith("Spacings"):
            pixel = PIXELS[i % len(PIXELS)]
            for volume in (image, segmentation):
                volume.SetSpacing((pixel, pixel, THICKNESSES[i % len(THICKNESSES)]))
        sitk.WriteImage(image, str(target / "imagesTr" / f"{identifier}_0000{ending}"))
        sitk.WriteImage(segmentation, str(target / "labelsTr" / file.name))
    content = {**description, "labels": labels, "numTraining": len(files)}
    if any(isinstance(values, list) for values in labels.values()):
        content["regions_class_order"] = [1, 2]
    (target / "dataset.json").write_text(json.dumps(content, indent=1))


def annotated_in_every_third_slice(segmentation: sitk.Image) -> sitk.Image:
    """The rest gets the ignore label."""
    array = sitk.GetArrayFromImage(segmentation)
    annotated = array[::3].copy()
    array[:] = IGNORE
    array[::3] = annotated
    sparse = sitk.GetImageFromArray(array)
    sparse.CopyInformation(segmentation)
    return sparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    arguments = parser.parse_args()
    for name, labels in DATASETS.items():
        make(arguments.source, arguments.out / name, labels, arguments.cases)


if __name__ == "__main__":
    main()

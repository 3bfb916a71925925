"""Raw datasets with regions and with an ignore label, made from one with labels 1 and 2, for a comparison with the published nnunetv2.

    python tests/reference/parity_datasets.py RAW/Dataset004_Hippocampus OUT --cases 40

Writes ``Dataset901_Regions`` and ``Dataset902_RegionsIgnore`` into the folder ``OUT``, which then serves as nnUNet_raw. In the second one only
every third slice is annotated.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import SimpleITK as sitk

REGIONS = {"background": 0, "whole": [1, 2], "posterior": 2}
IGNORE = 3
DATASETS = {
    "Dataset901_Regions": REGIONS,
    "Dataset902_RegionsIgnore": {**REGIONS, "ignore": IGNORE},
}


def make(source: Path, target: Path, labels: dict, cases: int) -> None:
    """One dataset with the first cases of another."""
    description = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    files = sorted((source / "labelsTr").glob(f"*{ending}"))[:cases]
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True, exist_ok=True)
    for file in files:
        identifier = file.name[: -len(ending)]
        shutil.copy(source / "imagesTr" / f"{identifier}_0000{ending}", target / "imagesTr")
        segmentation = sitk.ReadImage(str(file))
        if "ignore" in labels:
            array = sitk.GetArrayFromImage(segmentation)
            annotated = array[::3].copy()
            array[:] = IGNORE
            array[::3] = annotated
            sparse = sitk.GetImageFromArray(array)
            sparse.CopyInformation(segmentation)
            segmentation = sparse
        sitk.WriteImage(segmentation, str(target / "labelsTr" / file.name))
    content = {**description, "labels": labels, "regions_class_order": [1, 2], "numTraining": len(files)}
    (target / "dataset.json").write_text(json.dumps(content, indent=1))


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

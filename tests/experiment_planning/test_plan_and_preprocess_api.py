"""From raw files to preprocessed cases in a few calls."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny_datasets import SUBTYPE, write_tiny_dataset

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    default_processes,
    plan_experiments,
    preprocess,
    preprocess_dataset,
)

DATASET = "Dataset007_Tiny"


class QuickFingerprintExtractor(DatasetFingerprintExtractor):
    """Draws fewer samples, so that tests are quick."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 10_000


@pytest.fixture
def planned(nnunet_folders: dict[str, Path]) -> Path:
    """Preprocessed folder of a dataset with plans of the default planner."""
    write_tiny_dataset(nnunet_folders["raw"] / DATASET, num_cases=3, classification={"subtype": SUBTYPE})
    QuickFingerprintExtractor(7, num_processes=1).run()
    assert plan_experiments([7]) == "nnUNetPlans"
    return nnunet_folders["preprocessed"] / DATASET


def change_json(path: Path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_every_case_is_stored_with_its_segmentation(planned: Path, nnunet_folders) -> None:
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    stored = sorted(p.name for p in (planned / "nnUNetPlans_2d").iterdir())
    assert stored == sorted(f"case_{i:03d}{ending}" for i in range(3) for ending in (".b2nd", "_seg.b2nd", ".pkl"))
    raw = nnunet_folders["raw"] / DATASET / "labelsTr"
    for path in (planned / "gt_segmentations").iterdir():
        assert path.read_bytes() == (raw / path.name).read_bytes()
    assert len(list((planned / "gt_segmentations").iterdir())) == 3
    assert (planned / "labels.csv").exists()
    assert not (planned / "splits_final.json").exists()


def test_changed_segmentations_are_copied_again_and_others_are_not(planned: Path, nnunet_folders) -> None:
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    copies = planned / "gt_segmentations"
    before = {path.name: path.stat().st_mtime_ns for path in copies.iterdir()}
    raw = nnunet_folders["raw"] / DATASET / "labelsTr" / "case_001.nii.gz"
    os.utime(raw, (raw.stat().st_mtime + 100, raw.stat().st_mtime + 100))
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    changed = [name for name, written in before.items() if (copies / name).stat().st_mtime_ns != written]
    assert changed == ["case_001.nii.gz"]


def test_missing_configurations_are_skipped_but_not_all_of_them(planned: Path, capsys) -> None:
    preprocess([7], "nnUNetPlans", ["2d", "3d_lowres"], [1, 1], show_progress_bar=False)
    assert "Configuration 3d_lowres not found" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"none of the configurations \['3d_fulres'\]"):
        preprocess_dataset(7, configurations=["3d_fulres"], num_processes=1)


def test_replacing_cases_made_with_other_settings_is_said(planned: Path, capsys) -> None:
    preprocess_dataset(7, configurations=["3d_fullres"], num_processes=1, show_progress_bar=False)
    preprocess_dataset(7, configurations=["3d_fullres"], num_processes=1, show_progress_bar=False)
    assert "WARNING" not in capsys.readouterr().out

    # shares its folder with the default plans
    plan_experiments([7], "nnUNetPlannerResEncM")
    preprocess_dataset(7, "nnUNetResEncUNetMPlans", ["3d_fullres"], 1, show_progress_bar=False)
    assert "WARNING" not in capsys.readouterr().out

    plan_experiments([7], "nnUNetPlannerResEncM", overwrite_target_spacing=[2, 1, 1])
    preprocess_dataset(7, "nnUNetResEncUNetMPlans", ["3d_fullres"], 1, show_progress_bar=False)
    said = capsys.readouterr().out
    assert "nnUNetPlans_3d_fullres was preprocessed with other settings (spacing)" in said
    assert infer_folder_is_clean(planned / "nnUNetPlans_3d_fullres")


def infer_folder_is_clean(folder: Path) -> bool:
    """nnU-Net refuses a folder of cases that holds other kinds of files."""
    return {path.suffix for path in folder.iterdir()} == {".b2nd", ".pkl"}


def test_a_failed_preprocessing_keeps_older_cases_but_says_that_it_is_not_complete(planned: Path, nnunet_folders) -> None:
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    settings, folder = planned / "nnUNetPlans_2d.settings.json", planned / "nnUNetPlans_2d"
    assert json.loads(settings.read_text())["complete"]
    before = {path.name: path.read_bytes() for path in folder.glob("case_001*")}
    (nnunet_folders["raw"] / DATASET / "imagesTr" / "case_001_0000.nii.gz").write_bytes(b"broken")
    with pytest.raises(RuntimeError, match="case_001"):
        preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    assert not json.loads(settings.read_text())["complete"]
    assert {path.name: path.read_bytes() for path in folder.glob("case_001*")} == before and len(before) == 3


def preprocessed_again(planned: Path, **options) -> list[str]:
    """Identifiers of the cases that a further run with ``resume`` has written."""
    files = list((planned / "nnUNetPlans_2d").glob("*.pkl"))
    for file in planned.glob("nnUNetPlans_2d/*"):
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 1))  # so that a file written anew is newer on every file system
    before = {file: file.stat().st_mtime_ns for file in files}
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False, resume=True)
    return sorted(file.stem for file in (planned / "nnUNetPlans_2d").glob("*.pkl") if file.stat().st_mtime_ns != before.get(file))


def make_older(folder: Path, seconds: float) -> None:
    for file in folder.rglob("*"):
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - seconds))


def test_an_interrupted_preprocessing_is_resumed(planned: Path, nnunet_folders, capsys) -> None:
    make_older(nnunet_folders["raw"], 1000)
    image = nnunet_folders["raw"] / DATASET / "imagesTr" / "case_001_0000.nii.gz"
    settings, whole = planned / "nnUNetPlans_2d.settings.json", image.read_bytes()
    image.write_bytes(b"broken")
    with pytest.raises(RuntimeError, match="case_001"):
        preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    os.utime(settings, (0, settings.stat().st_mtime - 10))
    image.write_bytes(whole)
    assert preprocessed_again(planned) == ["case_001"]
    assert "2 of 3 cases are finished already; 1 remain" in capsys.readouterr().out
    assert json.loads(settings.read_text())["complete"]

    os.utime(image)  # a case whose image was replaced since
    assert preprocessed_again(planned) == ["case_001"]
    make_older(nnunet_folders["raw"], 1000)
    (planned / "nnUNetPlans_2d" / "case_002_seg.b2nd").unlink()
    assert preprocessed_again(planned) == ["case_002"]


def test_cases_made_with_other_settings_or_before_an_interrupted_run_are_not_kept(planned: Path, nnunet_folders, capsys) -> None:
    make_older(nnunet_folders["raw"], 1000)
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    settings = planned / "nnUNetPlans_2d.settings.json"
    change_json(settings, complete=False)  # newer than the cases now, as where a run ended before its first case
    make_older(planned / "nnUNetPlans_2d", 10)
    assert len(preprocessed_again(planned)) == 3
    change_json(settings, spacing=[9.0, 9.0])
    assert len(preprocessed_again(planned)) == 3
    assert "nothing to resume" in capsys.readouterr().out


def test_plans_must_be_those_of_the_dataset(planned: Path) -> None:
    change_json(planned / "nnUNetPlans.json", dataset_name="Dataset001_Other")
    with pytest.raises(ValueError, match="Dataset001_Other"):
        preprocess_dataset(7, num_processes=1)


def test_only_the_configurations_asked_for_must_fit_the_channels(planned: Path) -> None:
    plans = json.loads((planned / "nnUNetPlans.json").read_text())
    # as planning again after a change of the channels keeps it
    plans["configurations"]["of_old"] = plans["configurations"]["2d"] | {
        "normalization_schemes": ["NoNormalization"] * 2,
        "use_mask_for_norm": [False] * 2,
    }
    change_json(planned / "nnUNetPlans.json", **plans)
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    with pytest.raises(ValueError, match="normalise 2 channels in configuration of_old"):
        preprocess_dataset(7, configurations=["of_old"], num_processes=1, show_progress_bar=False)


def test_processes_are_given_once_or_for_each_configuration(planned: Path) -> None:
    assert default_processes(["2d", "3d_fullres", "3d_lowres", "mine"]) == [8, 4, 8, 4]
    with pytest.raises(ValueError, match="2 numbers of processes"):
        preprocess_dataset(7, configurations=["2d"], num_processes=(8, 4))

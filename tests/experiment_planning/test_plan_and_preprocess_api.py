"""From raw files to preprocessed cases in a few calls."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_datasets import SUBTYPE, write_tiny_dataset

from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    default_processes,
    plan_experiments,
    preprocess,
    preprocess_configuration,
    preprocess_dataset,
)
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.file_io import save_pickle
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

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


def stored_at(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def made_again(folder: Path, before: dict[str, int]) -> set[str]:
    """The cases whose files are other ones than before."""
    return {name.split(".")[0].removesuffix("_seg") for name, written in stored_at(folder).items() if before.get(name) != written}


ALL_CASES = {f"case_{index:03d}" for index in range(3)}


def test_cases_that_are_there_are_kept(planned: Path, capsys) -> None:
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    folder = planned / "nnUNetPlans_2d"
    before = stored_at(folder)
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    assert made_again(folder, before) == set()
    assert "3 of 3 cases are there already" in capsys.readouterr().out
    assert json.loads((planned / "nnUNetPlans_2d.settings.json").read_text())["complete"]
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False, start_over=True)
    assert made_again(folder, before) == ALL_CASES


def touch_image(planned: Path, raw: Path) -> None:
    image = raw / "imagesTr" / "case_001_0000.nii.gz"
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))


def touch_label(planned: Path, raw: Path) -> None:
    label = raw / "labelsTr" / "case_001.nii.gz"
    os.utime(label, ns=(0, label.stat().st_mtime_ns + 1))


def truncate(planned: Path, raw: Path) -> None:
    with open(planned / "nnUNetPlans_2d" / "case_001.b2nd", "r+b") as file:
        file.truncate(100)


def remove_properties(planned: Path, raw: Path) -> None:
    (planned / "nnUNetPlans_2d" / "case_001.pkl").unlink()


def damage_record(planned: Path, raw: Path) -> None:
    (planned / "nnUNetPlans_2d.cases" / "case_001.json").write_text('{"settings": ')


@pytest.mark.parametrize("change", [touch_image, touch_label, truncate, remove_properties, damage_record])
def test_a_case_whose_files_changed_is_made_again(planned: Path, nnunet_folders, change) -> None:
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    folder = planned / "nnUNetPlans_2d"
    before, content = stored_at(folder), {path.name: path.read_bytes() for path in folder.iterdir()}
    change(planned, nnunet_folders["raw"] / DATASET)
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    assert made_again(folder, before) == {"case_001"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def change_spacing(planned: Path) -> None:
    plans = json.loads((planned / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"]["spacing"] = [1.5, 1.5]
    change_json(planned / "nnUNetPlans.json", **plans)


def change_patch_size(planned: Path) -> None:
    plans = json.loads((planned / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"]["patch_size"] = [16, 16]
    change_json(planned / "nnUNetPlans.json", **plans)


def change_labels(planned: Path) -> None:
    change_json(planned / "dataset.json", labels={"background": 0, "organ": [1, 2], "lesion": 2}, regions_class_order=[1, 2])


@pytest.mark.parametrize("change", [change_spacing, change_patch_size, change_labels])
def test_other_settings_make_every_case_again(planned: Path, change) -> None:
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    before = stored_at(planned / "nnUNetPlans_2d")
    change(planned)
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    assert made_again(planned / "nnUNetPlans_2d", before) == ALL_CASES


def test_a_new_description_or_case_makes_no_other_case_again(planned: Path, nnunet_folders) -> None:
    folder, raw = planned / "nnUNetPlans_2d", nnunet_folders["raw"] / DATASET
    files = [raw / "imagesTr" / "case_002_0000.nii.gz", raw / "labelsTr" / "case_002.nii.gz"]
    content = [file.read_bytes() for file in files]
    tables = [folder / "labels.csv" for folder in (raw, planned)]
    for file in (*files, *(table for table in tables if table.exists())):
        file.unlink()
    change_json(planned / "dataset.json", classification={})
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    before = stored_at(folder)
    for file, old in zip(files, content, strict=True):
        file.write_bytes(old)
    change_json(planned / "dataset.json", numTraining=3, description="more")
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    assert made_again(folder, before) == {"case_002"}
    for file in files:
        file.unlink()
    preprocess_dataset(7, configurations=["2d"], num_processes=1, show_progress_bar=False)
    assert stored_at(folder) == before
    assert {path.stem for path in (planned / "nnUNetPlans_2d.cases").iterdir()} == {"case_000", "case_001"}


def test_parts_share_the_cases_and_the_last_one_completes_the_folder(planned: Path, capsys) -> None:
    settings = planned / "nnUNetPlans_2d.settings.json"
    options = {"configurations": ["2d"], "num_processes": 1, "show_progress_bar": False, "num_parts": 2}
    preprocess_dataset(7, part_id=1, **options)
    assert {path.stem for path in (planned / "nnUNetPlans_2d").glob("*.pkl")} == {"case_001"}
    assert not json.loads(settings.read_text())["complete"]
    assert "2 cases of other parts are not there yet" in capsys.readouterr().out
    preprocess_dataset(7, part_id=0, **options)
    assert {path.stem for path in (planned / "nnUNetPlans_2d").glob("*.pkl")} == ALL_CASES
    assert json.loads(settings.read_text())["complete"]
    with pytest.raises(ValueError, match="part_id is 2 and num_parts 2"):
        preprocess_dataset(7, part_id=2, **options)


def test_parts_that_end_together_complete_the_folder(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"configurations": ["2d"], "num_processes": 1, "show_progress_bar": False, "num_parts": 2}
    look = plan_and_preprocess_api._cases_of_other_parts

    def look_before_the_other_part_ends(*arguments) -> int:
        missing = look(*arguments)
        patch.undo()
        preprocess_dataset(7, part_id=1, **options)
        return missing

    with monkeypatch.context() as patch:
        patch.setattr(plan_and_preprocess_api, "_cases_of_other_parts", look_before_the_other_part_ends)
        preprocess_dataset(7, part_id=0, **options)
    assert json.loads((planned / "nnUNetPlans_2d.settings.json").read_text())["complete"]


class StoresUnpacked(DefaultPreprocessor):
    """Of the user, for the format of older versions."""

    def run_case_save(self, output_filename_truncated, image_files, seg_file, *settings) -> None:
        data, seg, properties = self.run_case(image_files, seg_file, *settings)
        np.savez_compressed(output_filename_truncated + ".npz", data=data, seg=seg)
        save_pickle(properties, output_filename_truncated + ".pkl")


class RunsByItself(StoresUnpacked):
    """Makes all cases, without parts and records."""

    def run(self, dataset_name_or_id, configuration_name, plans_identifier, num_processes) -> None:
        folder = Path(nnUNet_preprocessed, DATASET, "nnUNetPlans_2d")
        folder.mkdir(exist_ok=True)
        for case in ALL_CASES:
            (folder / f"{case}.npz").touch()


class FromNotebook(DefaultPreprocessor):
    """Its code cannot be looked at."""


FromNotebook.__module__ = "nowhere"


@pytest.mark.parametrize(
    ("kind", "complete_after"), [(StoresUnpacked, [False, True]), (FromNotebook, [False, True]), (RunsByItself, [True, True])]
)
def test_parts_of_a_users_preprocessor_complete_the_folder(planned: Path, kind: type[DefaultPreprocessor], complete_after) -> None:
    complete = []
    for part in range(2):
        preprocessor = kind(verbose=False)
        preprocessor.show_progress_bar, preprocessor.num_parts, preprocessor.part_id = False, 2, part
        preprocess_configuration(preprocessor, DATASET, PlansManager(planned / "nnUNetPlans.json"), "nnUNetPlans", "2d", 1)
        complete.append(json.loads((planned / "nnUNetPlans_2d.settings.json").read_text())["complete"])
    assert complete == complete_after
    assert {path.name.split(".")[0].removesuffix("_seg") for path in (planned / "nnUNetPlans_2d").iterdir()} == ALL_CASES

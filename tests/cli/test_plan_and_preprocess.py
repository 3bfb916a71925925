"""The commands before training: options, and errors that a user can act on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_datasets import PLANNER, PLANS, SUBTYPE, write_image, write_tiny_dataset

from nnunetv2.cli.arguments import run_command
from nnunetv2.cli.plan_and_preprocess import (
    extract_fingerprint_entry,
    move_plans_entry,
    plan_and_preprocess_entry,
    plan_experiment_entry,
    preprocess_entry,
)

COMMANDS = [plan_and_preprocess_entry, extract_fingerprint_entry, plan_experiment_entry, preprocess_entry]
DATASET = "Dataset007_Tiny"


@pytest.fixture
def tiny(nnunet_folders: dict[str, Path]) -> Path:
    """Preprocessed folder of a dataset that only has raw files so far."""
    write_tiny_dataset(nnunet_folders["raw"] / DATASET, num_cases=4)
    return nnunet_folders["preprocessed"] / DATASET


@pytest.fixture
def quick_fingerprint(tiny: Path) -> Path:
    """The same with a fingerprint."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    extractor = DatasetFingerprintExtractor(7, num_processes=1)
    extractor.num_foreground_voxels_for_intensitystats = 10_000
    extractor.run()
    return tiny


def message(capsys: pytest.CaptureFixture[str], command, *arguments: str, said: str = "") -> str:
    """First line of what a failing command says on stderr; its exit status must be 1 and the whole must hold `said`."""
    with pytest.raises(SystemExit) as stop:
        command([*arguments])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and said in error
    return next(line for line in error.splitlines() if line.startswith("Error: "))


@pytest.mark.parametrize("command", COMMANDS)
def test_misspelled_options_are_errors(command, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command(["-d", "7", "--misspelled"])
    assert stop.value.code == 2
    assert "--misspelled" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_dataset_is_required(command, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command([])
    assert stop.value.code == 2
    assert "-d" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("dataset", "said"), [("42", "42"), ("Dataset042_None", "Dataset042_None")])
def test_an_unknown_dataset_is_one_line(command, dataset, said, nnunet_folders, capsys) -> None:
    assert said in message(capsys, command, "-d", dataset)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_environment_variable_is_one_line(command, nnunet_folders, monkeypatch, capsys) -> None:
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw" in message(capsys, command, "-d", "Dataset007_Tiny")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": None}, "'labels' is missing"),
        ({"numTraining": None}, "'numTraining' is missing"),
        ({"numTraining": "4"}, "'numTraining' is '4'"),
        ({"channel_names": None}, "'channel_names' is missing"),
        ({"labels": {"background": 0, "organ": 1, "lesion": 3}}, "must be consecutive"),
        ([], "one JSON object"),
    ],
)
@pytest.mark.parametrize("command", [extract_fingerprint_entry, plan_experiment_entry])
def test_a_wrong_dataset_json_is_found_before_anything_is_computed(command, change, said, quick_fingerprint, nnunet_folders, capsys):
    path = nnunet_folders["raw"] / DATASET / "dataset.json"
    content = json.loads(path.read_text())
    content = {k: v for k, v in (content | change).items() if v is not None} if isinstance(change, dict) else change
    path.write_text(json.dumps(content))
    assert "dataset.json cannot be used" in message(capsys, command, "-d", "7", said=said)


def test_labels_of_regions_may_have_gaps(quick_fingerprint, nnunet_folders) -> None:
    path = nnunet_folders["raw"] / DATASET / "dataset.json"
    regions = {"labels": {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": 4}, "regions_class_order": [1, 2, 4]}
    path.write_text(json.dumps(json.loads(path.read_text()) | regions))
    plan_experiment_entry(["-d", "7", "-pl", PLANNER])
    assert (quick_fingerprint / f"{PLANS}.json").is_file()


def test_verbose_says_what_was_found_in_every_case(tiny, capsys) -> None:
    extract_fingerprint_entry(["-d", "7", "-np", "1", "--verbose", "--no_pbar"])
    assert "case_003: (20, 24, 22) voxels of [1.0, 1.0, 1.0] mm, cropped to 100.0 %" in capsys.readouterr().out
    extract_fingerprint_entry(["-d", "7", "-np", "1", "--clean", "--no_pbar"])
    assert "case_003" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan_and_preprocess", "extract_fingerprint", "plan_experiment", "preprocess"])
def test_a_number_of_processes_that_is_no_number_is_one_line(command, tiny) -> None:
    code = f"from nnunetv2.cli import plan_and_preprocess as cli; cli.{command}_entry(['-d', '7'])"
    environment = {**os.environ, "nnUNet_def_n_proc": "abc"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: The environment variable nnUNet_def_n_proc is 'abc'")
    assert "Traceback" not in done.stderr


def test_an_unknown_planner_is_one_line(quick_fingerprint, capsys) -> None:
    assert "NoPlanner" in message(capsys, plan_experiment_entry, "-d", "7", "-pl", "NoPlanner")
    # a name that exists but is no planner
    assert "load_fingerprint" in message(capsys, plan_experiment_entry, "-d", "7", "-pl", "load_fingerprint")
    assert "NoExtractor" in message(capsys, extract_fingerprint_entry, "-d", "7", "-fpe", "NoExtractor")


def test_a_spacing_of_two_numbers_is_one_line(quick_fingerprint, capsys) -> None:
    assert "three positive numbers" in message(capsys, plan_experiment_entry, "-d", "7", "-overwrite_target_spacing", "1", "1")


def test_planning_without_fingerprint_is_one_line(tiny, capsys) -> None:
    assert "nnUNetv2_extract_fingerprint" in message(capsys, plan_experiment_entry, "-d", "7")


def test_preprocessing_without_plans_is_one_line(quick_fingerprint, capsys) -> None:
    assert "none.json" in message(capsys, preprocess_entry, "-d", "7", "-p", "none")


def test_a_wrong_count_of_processes_is_found_at_once(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        plan_and_preprocess_entry(["-d", "7", "-c", "2d", "-np", "1", "2"])
    assert stop.value.code == 2
    assert "2 numbers for 1 configurations" in capsys.readouterr().err


def test_wrong_class_labels_are_found_before_anything_is_computed(nnunet_folders, capsys) -> None:
    raw = nnunet_folders["raw"] / DATASET
    write_tiny_dataset(raw, num_cases=4, classification={"subtype": SUBTYPE})
    table = (raw / "labels.csv").read_text().splitlines()
    table[1:3] = ["case_000,drak", "case_001,brigth"]
    (raw / "labels.csv").write_text("\n".join(table))
    with pytest.raises(SystemExit):
        extract_fingerprint_entry(["-d", "7", "-np", "1"])
    said = capsys.readouterr().err
    assert "drak" in said and "brigth" in said
    assert not (nnunet_folders["preprocessed"] / DATASET).exists()


def test_plan_options_reach_the_planner(quick_fingerprint) -> None:
    plan_experiment_entry(
        ["-d", "7", "-pl", "ResEncUNetPlanner", "-gpu_memory_target", "4", "-overwrite_target_spacing", "2", "1", "1"]
        + ["-overwrite_plans_name", "mine", "-preprocessor_name", "MyPreprocessor"]
    )
    plans = json.loads((quick_fingerprint / "mine.json").read_text())
    assert plans["plans_name"] == "mine"
    assert plans["experiment_planner_used"] == "ResEncUNetPlanner"
    fullres = plans["configurations"]["3d_fullres"]
    assert fullres["spacing"] == [2, 1, 1]
    assert fullres["preprocessor_name"] == "MyPreprocessor"
    assert fullres["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")


def test_options_may_be_abbreviated(quick_fingerprint) -> None:
    plan_experiment_entry(["-d", "7", "-overwrite_plans", "short"])
    assert (quick_fingerprint / "short.json").exists()


def test_datasets_may_be_given_by_name(quick_fingerprint) -> None:
    plan_experiment_entry(["-d", DATASET])
    assert (quick_fingerprint / "nnUNetPlans.json").exists()


def test_planning_copies_class_labels(nnunet_folders) -> None:
    raw = nnunet_folders["raw"] / DATASET
    write_tiny_dataset(raw, num_cases=4, classification={"subtype": SUBTYPE})
    plan_and_preprocess_entry(["-d", "7", "--no_pp", "-npfp", "1", "--no_pbar"])
    preprocessed = nnunet_folders["preprocessed"] / DATASET
    assert (preprocessed / "labels.csv").read_text().startswith("identifier,subtype")
    assert json.loads((preprocessed / "dataset.json").read_text())["classification"] == {"subtype": SUBTYPE}
    assert not list(preprocessed.glob("nnUNetPlans_*"))


def test_moved_plans_fit_the_other_dataset(quick_fingerprint, nnunet_folders) -> None:
    plan_experiment_entry(["-d", "7"])
    write_tiny_dataset(nnunet_folders["raw"] / "Dataset008_Other", num_cases=2)
    (nnunet_folders["preprocessed"] / "Dataset008_Other").mkdir()
    move_plans_entry(["-s", "7", "-t", "8", "-sp", "nnUNetPlans", "-tp", "pretrained"])
    source = json.loads((quick_fingerprint / "nnUNetPlans.json").read_text())
    moved = json.loads((nnunet_folders["preprocessed"] / "Dataset008_Other" / "pretrained.json").read_text())
    assert (moved["dataset_name"], moved["plans_name"]) == ("Dataset008_Other", "pretrained")
    assert moved["configurations"]["2d"]["data_identifier"] == "pretrained_2d"
    assert moved["configurations"]["2d"]["patch_size"] == source["configurations"]["2d"]["patch_size"]


def test_a_dataset_that_was_never_planned_is_preprocessed_with_moved_plans(quick_fingerprint, nnunet_folders) -> None:
    plan_experiment_entry(["-d", "7"])
    raw, preprocessed = (nnunet_folders[name] / "Dataset008_Other" for name in ("raw", "preprocessed"))
    write_tiny_dataset(raw, num_cases=2)
    (raw / "splits_final.json").write_text('[{"train": ["case_000"], "val": ["case_001"]}]')
    preprocessed.mkdir()
    move_plans_entry(["-s", "7", "-t", "8", "-sp", "nnUNetPlans", "-tp", "pretrained"])
    preprocess_entry(["-d", "8", "-plans_name", "pretrained", "-c", "2d", "-np", "1", "--no_pbar"])
    assert len(list((preprocessed / "pretrained_2d").glob("case_00?.b2nd"))) == 2
    assert (preprocessed / "splits_final.json").read_text() == (raw / "splits_final.json").read_text()
    (preprocessed / "dataset.json").write_text("{}")
    move_plans_entry(["-s", "7", "-t", "8", "-sp", "nnUNetPlans", "-tp", "again"])
    assert (preprocessed / "dataset.json").read_text() == "{}"  # of an earlier planning


def test_moving_plans_that_do_not_exist_is_one_line(quick_fingerprint, capsys) -> None:
    assert "none.json" in message(capsys, move_plans_entry, "-s", "7", "-t", "7", "-sp", "none")


def test_plans_of_another_dataset_are_refused(quick_fingerprint, capsys) -> None:
    plan_experiment_entry(["-d", "7"])
    path = quick_fingerprint / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    path.write_text(json.dumps(plans | {"dataset_name": "Dataset001_Other"}))
    assert "nnUNetv2_move_plans_between_datasets" in message(capsys, preprocess_entry, "-d", "7")
    path.write_text(json.dumps(plans))
    description = json.loads((quick_fingerprint / "dataset.json").read_text())
    (quick_fingerprint / "dataset.json").write_text(json.dumps(description | {"channel_names": {"0": "a", "1": "b"}}))
    assert "names 2" in message(capsys, preprocess_entry, "-d", "7")


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def spoil(raw: Path, how: str, case: str) -> None:
    """Make one case of a dataset bad."""
    image, label = raw / "imagesTr" / f"{case}_0000.nii.gz", raw / "labelsTr" / f"{case}.nii.gz"
    if how == "image without label":
        label.unlink()
    elif how == "label without image":
        image.unlink()
    elif how == "missing channel":
        image.rename(raw / "imagesTr" / f"{case}_0001.nii.gz")
    elif how == "other shape":
        write_image(read(label)[1:], label)
    elif how in ("other spacing", "other origin"):
        changed = sitk.ReadImage(str(label))
        changed.SetSpacing((1, 1, 1.5)) if how == "other spacing" else changed.SetOrigin((5, 0, 0))
        sitk.WriteImage(changed, str(label))
    elif how in ("undeclared label", "half a label"):
        labels = read(label).astype(np.float32)
        labels[0, 0, 0] = 7 if how == "undeclared label" else 0.5
        write_image(labels, label)
    elif how in ("NaN", "infinite", "NaN label"):
        file = label if how == "NaN label" else image
        voxels = read(file).astype(np.float32)
        voxels[0, 0, 0] = np.inf if how == "infinite" else np.nan
        write_image(voxels, file)
    elif how == "truncated":
        image.write_bytes(image.read_bytes()[:1000])


BAD_CASES = {
    "image without label": "the image has no segmentation",
    "label without image": "the segmentation has no image",
    "missing channel": "channel 0000 is missing",
    "other shape": "shapes differ",
    "other spacing": "spacings differ",
    "other origin": "origin or direction differ",
    "undeclared label": "labels that dataset.json does not declare: 7 (declared: 0, 1, 2)",
    "half a label": "the value 0.5, but labels are whole numbers",
    "NaN": "1 NaN voxel",
    "infinite": "1 infinite voxel",
    "NaN label": "1 NaN voxel",
    "truncated": "is truncated",
}


@pytest.mark.parametrize("how", list(BAD_CASES))
@pytest.mark.parametrize("verify", [True, False])
def test_bad_cases_are_named_together(how: str, verify: bool, nnunet_folders, capsys) -> None:
    raw = nnunet_folders["raw"] / DATASET
    write_tiny_dataset(raw, num_cases=4)
    for case in ("case_001", "case_003"):
        spoil(raw, how, case)
    options = ["--verify_dataset_integrity"] if verify else []
    with pytest.raises(SystemExit) as stop:
        plan_and_preprocess_entry(["-d", "7", "-pl", PLANNER, "-c", "3d_fullres", "-np", "1", "-npfp", "1", "--no_pbar", *options])
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    text = said[said.index("Error: ") :]
    assert text.count(BAD_CASES[how]) == 2 and "case_001" in text and "case_003" in text
    assert "case_000" not in text and "case_002" not in text
    folder = nnunet_folders["preprocessed"] / DATASET
    if verify or how != "undeclared label":
        assert not folder.exists()
    else:
        assert not list(folder.glob("*_3d_fullres/case_001*"))


def test_the_preprocessing_alone_sees_bad_cases_too(nnunet_folders, capsys) -> None:
    raw = nnunet_folders["raw"] / DATASET
    write_tiny_dataset(raw, num_cases=4)
    plan_and_preprocess_entry(["-d", "7", "-pl", PLANNER, "--no_pp", "-npfp", "1", "--no_pbar"])
    for case, how in (("case_001", "NaN"), ("case_002", "other origin"), ("case_003", "undeclared label")):
        spoil(raw, how, case)
    with pytest.raises(SystemExit):
        preprocess_entry(["-d", "7", "-p", PLANS, "-c", "3d_fullres", "-np", "1", "--no_pbar"])
    said = capsys.readouterr().err
    assert "3 of 4 cases failed" in said and all(BAD_CASES[how] in said for how in ("NaN", "other origin", "undeclared label"))


def test_almost_whole_labels_are_rounded_with_one_warning(nnunet_folders, capsys) -> None:
    raw = nnunet_folders["raw"] / DATASET
    write_tiny_dataset(raw, num_cases=4)
    for case in ("case_001", "case_003"):
        write_image(read(raw / "labelsTr" / f"{case}.nii.gz") * np.float32(1.0000153), raw / "labelsTr" / f"{case}.nii.gz")
    extract_fingerprint_entry(["-d", "7", "-np", "1", "--no_pbar"])
    warning = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(warning) == 1 and "case_001" in warning[0] and "Likewise case_003" in warning[0]


def test_a_missing_folder_for_results_is_found_before_any_file_is_read(nnunet_folders, monkeypatch, capsys) -> None:
    raw = nnunet_folders["raw"] / DATASET
    write_tiny_dataset(raw, num_cases=4)
    spoil(raw, "truncated", "case_001")
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "nnUNet_preprocessed is not set" in message(capsys, extract_fingerprint_entry, "-d", "7", "--verify_dataset_integrity")


def test_an_error_is_the_last_thing_to_be_seen(capsys) -> None:
    @run_command
    def failing(argv=None) -> None:
        warnings.warn("something odd", UserWarning, stacklevel=1)
        raise PermissionError(13, "Permission denied", "folder/file.json")

    with pytest.raises(SystemExit) as stop:
        failing([])
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "Error: folder/file.json: Permission denied"


def test_commands_show_warnings_without_code() -> None:
    script = (
        "import warnings\nfrom nnunetv2.cli.arguments import run_command\n"
        "@run_command\ndef main(argv=None):\n    warnings.warn('something odd', stacklevel=1)\n"
        "main([])\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ).stderr
    assert said == "WARNING: something odd\n"


@pytest.mark.parametrize(("variable", "arguments"), [("1", []), ("0", ["--verbose"])])
def test_the_traceback_is_shown_on_request(variable, arguments, nnunet_folders, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_debug", variable)
    with pytest.raises(RuntimeError):
        plan_experiment_entry(["-d", "42", *arguments])


def test_faults_of_the_program_keep_their_traceback() -> None:
    @run_command
    def broken(argv=None) -> None:
        {}["missing"]

    with pytest.raises(KeyError):
        broken([])


def test_commands_answer_without_loading_numpy_or_torch() -> None:
    script = (
        "import sys\n"
        "from nnunetv2.cli.plan_and_preprocess import plan_and_preprocess_entry\n"
        "try:\n    plan_and_preprocess_entry(['--help'])\n"
        "finally:\n    print(sorted({'numpy', 'torch', 'scipy'} & set(sys.modules)))\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ).stdout
    assert said.splitlines()[-1] == "[]"


def test_planning_never_loads_torch() -> None:
    script = (
        "import sys\n"
        "import nnunetv2.experiment_planning.plan_and_preprocess_api\n"
        "import nnunetv2.experiment_planning.experiment_planners.resencUNet_planner\n"
        "import nnunetv2.experiment_planning.experiment_planners.resampling.resample_with_torch\n"
        "print('torch' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ).stdout
    assert said.strip() == "False"

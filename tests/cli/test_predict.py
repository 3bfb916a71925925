from __future__ import annotations

import csv
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from tiny_models import write_images, write_model

from nnunetv2.cli import predict
from nnunetv2.cli.predict import predict_entry, predict_modelfolder_entry
from nnunetv2.inference import case_classification, trained_model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A results folder with a model with heads and one without."""
    results = tmp_path_factory.mktemp("results")
    folder = results / "Dataset999_Tiny"
    write_model(folder / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    multitask = "nnUNetTrainerMultitask"
    write_model(folder / f"{multitask}__nnUNetPlans__3d_fullres", classification=True, trainer_name=multitask)
    return results


@pytest.fixture
def folders(tmp_path) -> Path:
    write_images(tmp_path / "in", number=2)
    return tmp_path


def modelfolder(models: Path, trainer: str = "nnUNetTrainer") -> str:
    return str(models / "Dataset999_Tiny" / f"{trainer}__nnUNetPlans__3d_fullres")


def common(folders: Path) -> list[str]:
    return ["-i", str(folders / "in"), "-o", str(folders / "out"), "-f", "0", "-device", "cpu", "--disable_tta", "--disable_progress_bar"]


def test_help_and_mistakes_answer_without_torch_and_numpy() -> None:
    code = (
        "import sys\nfrom nnunetv2.cli.predict import predict_entry\n"
        "try:\n    predict_entry(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules), 'heavy imports'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_wrong_folder_is_reported_without_importing_torch(tmp_path) -> None:
    code = (
        "import sys\nfrom nnunetv2.cli.predict import predict_modelfolder_entry\n"
        f"try:\n    predict_modelfolder_entry(['-m', {str(tmp_path / 'none')!r}, '-i', 'a', '-o', 'b'])\n"
        "except SystemExit as error:\n    assert error.code == 1\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "There is no trained model in" in done.stderr


def test_choices_are_those_of_the_predictor() -> None:
    assert predict.AGGREGATIONS == case_classification.AGGREGATIONS
    assert predict.HEAD_SETS == trained_model.HEAD_SETS


def test_predict_finds_the_model_of_a_dataset(models, folders, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(models))
    predict_entry(["-d", "999", "-c", "3d_fullres", *common(folders)])
    assert sorted(file.name for file in (folders / "out").glob("*.nii.gz")) == ["case_0.nii.gz", "case_1.nii.gz"]


def test_save_cls_writes_the_table(models, folders) -> None:
    predict_modelfolder_entry(["-m", modelfolder(models, "nnUNetTrainerMultitask"), *common(folders), "--save_cls"])
    lines = (folders / "out" / "classification.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["identifier", "case_0", "case_1"]


def test_save_cls_takes_a_file_and_cls_only_leaves_segmentations_out(models, folders) -> None:
    options = ["--save_cls", str(folders / "elsewhere" / "classes.csv"), "--cls_only", "--cls_heads", "joint"]
    predict_modelfolder_entry(["-m", modelfolder(models, "nnUNetTrainerMultitask"), *common(folders), *options])
    assert (folders / "elsewhere" / "classes.csv").is_file()
    assert not list((folders / "out").glob("*.nii.gz"))


def test_save_saliency_writes_maps_and_the_table_of_the_classes_that_they_explain(models, folders) -> None:
    options = [*common(folders), "--save_saliency", "--cls_aggregation", "mean", "-npp", "0", "-nps", "0"]
    predict_modelfolder_entry(["-m", modelfolder(models, "nnUNetTrainerMultitask"), *options])
    assert (folders / "out" / "classification.csv").is_file()
    maps = [f"case_{index}_{task}.nii.gz" for index in range(2) for task in ("findings", "grade", "subtype")]
    assert sorted(file.name for file in (folders / "out" / "saliency").iterdir()) == maps
    assert sorted(file.name for file in (folders / "out").glob("*.nii.gz")) == ["case_0.nii.gz", "case_1.nii.gz"]


@pytest.mark.parametrize(("preprocessing", "export"), [("0", "1"), ("1", "0")])
def test_either_number_of_processes_may_be_zero(preprocessing: str, export: str, models, folders) -> None:
    predict_modelfolder_entry(["-m", modelfolder(models), *common(folders), "-npp", preprocessing, "-nps", export])
    assert sorted(file.name for file in (folders / "out").glob("*.nii.gz")) == ["case_0.nii.gz", "case_1.nii.gz"]


def test_sequential_mode_honours_parts(models, folders) -> None:
    predict_modelfolder_entry(["-m", modelfolder(models), *common(folders), "-npp", "0", "-nps", "0", "-num_parts", "2", "-part_id", "1"])
    assert [file.name for file in (folders / "out").glob("*.nii.gz")] == ["case_1.nii.gz"]


@pytest.mark.parametrize("alias", ["--c", "--continue_prediction"])
def test_continuing_keeps_what_is_complete(models, folders, alias) -> None:
    predict_modelfolder_entry(["-m", modelfolder(models), *common(folders), "--save"])
    assert (folders / "out" / "case_0.npz").is_file()
    before = (folders / "out" / "case_0.nii.gz").stat().st_mtime_ns
    predict_modelfolder_entry(["-m", modelfolder(models), *common(folders), alias])
    assert (folders / "out" / "case_0.nii.gz").stat().st_mtime_ns == before


@pytest.mark.parametrize("option", ["--save_cls", "--save_saliency"])
def test_classes_of_a_model_without_heads_predict_nothing(models, folders, option, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        predict_modelfolder_entry(["-m", modelfolder(models), *common(folders), option])
    assert caught.value.code == 1
    assert "no classification heads" in capsys.readouterr().err
    assert not (folders / "out").exists()


def prediction_error(capsys: pytest.CaptureFixture[str], model: str | Path, folders: Path, *options: str) -> str:
    """What the command says last when it stops; its exit status must be 1."""
    with pytest.raises(SystemExit) as caught:
        predict_modelfolder_entry(["-m", str(model), *common(folders), *options])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said[said.index("Error: ") :]


def test_cases_that_cannot_be_read_have_a_row_with_the_reason(models, folders, capsys) -> None:
    images = folders / "in"
    write_images(images, number=4)
    (images / "case_0_0000.nii.gz").write_bytes((images / "case_0_0000.nii.gz").read_bytes()[:900])
    image = sitk.ReadImage(str(images / "case_2_0000.nii.gz"))
    image[3, 3, 3] = float("nan")
    sitk.WriteImage(image, str(images / "case_2_0000.nii.gz"))
    said = prediction_error(capsys, modelfolder(models, "nnUNetTrainerMultitask"), folders, "--save_cls")
    assert "2 of 4 cases failed" in said and "case_0: Cannot read" in said and "1 NaN voxel" in said
    with open(folders / "out" / "classification.csv", newline="") as file:
        rows = {row["identifier"]: row for row in csv.DictReader(file)}
    assert "truncated" in rows["case_0"]["error"] and "NaN" in rows["case_2"]["error"]
    assert rows["case_0"]["subtype"] == rows["case_2"]["subtype"] == "" and rows["case_1"]["subtype"] and not rows["case_1"]["error"]
    assert sorted(path.name for path in (folders / "out").glob("*.nii.gz")) == ["case_1.nii.gz", "case_3.nii.gz"]


def test_missing_channels_are_named_before_anything_is_predicted(models, folders, capsys) -> None:
    (folders / "in" / "case_1_0000.nii.gz").rename(folders / "in" / "case_1_0001.nii.gz")
    said = prediction_error(capsys, modelfolder(models), folders)
    assert "channels of 1 of 2 cases are missing: case_1 (case_1_0001.nii.gz)" in said
    assert not (folders / "out").exists()


def test_the_output_must_be_another_folder(models, folders, capsys) -> None:
    before = sorted((folders / "in").iterdir())
    assert "are the same folder" in prediction_error(capsys, modelfolder(models), folders, "-o", f"{folders}/in/../in/")
    assert sorted((folders / "in").iterdir()) == before
    (folders / "out").write_text("")
    assert "out is a file" in prediction_error(capsys, modelfolder(models), folders)


class Hostile:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "Missing in .*: fold_0/checkpoint_final.pth. There is: no checkpoint at all"),
        ("truncated", "checkpoint_final.pth cannot be read"),
        ("hostile", "was refused: .*can run any code.*mkdir"),
        ("trainer", "it was trained with trainer nnUNetTrainerMultitask, not nnUNetTrainer"),
        ("dataset", "it was trained with dataset Dataset001_Other, not Dataset999_Tiny"),
    ],
)
def test_checkpoints_that_cannot_be_used_predict_nothing(what: str, said: str, models, folders, capsys) -> None:
    model = Path(shutil.copytree(modelfolder(models), folders / "nnUNetTrainer__nnUNetPlans__3d_fullres"))
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=True)
    if what == "missing":
        file.unlink()
    elif what == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif what == "hostile":
        torch.save(content | {"more": Hostile(folders / "done")}, file)
    elif what == "trainer":
        shutil.copy(Path(modelfolder(models, "nnUNetTrainerMultitask")) / "fold_0" / file.name, file)
    else:
        content["init_args"]["plans"]["dataset_name"] = "Dataset001_Other"
        torch.save(content, file)
    assert re.search(said, prediction_error(capsys, model, folders), re.DOTALL)
    assert not (folders / "out").exists() and not (folders / "done").exists()


def test_a_full_disk_leaves_no_half_file(models, folders, capsys) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # enough for plans and masks, not for probabilities
    try:
        said = prediction_error(capsys, modelfolder(models), folders, "--save_probabilities")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Cannot write" in said and "case_0.npz" in said and "case_1.npz" in said
    assert sorted(path.name for path in (folders / "out").iterdir()) == ["dataset.json", "plans.json", "predict_from_raw_data_args.json"]


def test_a_broken_case_is_reported_at_the_end(models, folders, capsys) -> None:
    (folders / "in" / "case_0_0000.nii.gz").write_bytes(b"broken")
    with pytest.raises(SystemExit) as caught:
        predict_modelfolder_entry(["-m", modelfolder(models), *common(folders)])
    assert caught.value.code == 1
    assert "1 of 2 cases failed" in capsys.readouterr().err
    assert (folders / "out" / "case_1.nii.gz").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-num_parts", "2", "-part_id", "2"], "parts are counted from 0"),
        (["--cls_only"], "--save_cls only"),
        (["--cls_aggregation", "max"], "--save_cls only"),
        (["--save_saliency", "--cls_only", "--save_probabilities"], "needs the segmentations"),
        (["--save_cls", "--cls_only", "--save_probabilities"], "needs the segmentations"),
        (["--save_cls", "--cls_only", "--cls_aggregation", "evidence"], "needs the segmentations"),
        (["-step_size", "0"], "larger than 0"),
        (["-f", "first"], "is no fold"),
        (["-f", "-1"], "0 or a higher whole number"),
        (["--sav_probabilities"], "unrecognized"),
    ],
)
def test_contradicting_options_end_before_anything_is_read(options, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        predict_modelfolder_entry(["-m", "none", "-i", "none", "-o", "none", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("value", "expected"), [("5", 5), ("", None), ("many", None), ("0", 0)])
def test_processes_default_to_the_environment_and_are_chosen_without(value, expected, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_npp", value)
    assert predict._processes("nnUNet_npp") == expected

"""Zip files of models, made and installed here; and with stock nnU-Net 2.8.1 where ``NNUNET_REFERENCE`` names its Python."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from stock_nnunet import files_of, run_reference
from tiny_models import CLASSIFICATION, dataset_json, plans, write_images, write_model
from tiny_trainings import same

from nnunetv2.cli.model_sharing import download_entry, export_entry, install_entry
from nnunetv2.cli.predict import predict_entry
from nnunetv2.model_sharing.model_download import DownloadError, download_file
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.model_sharing.model_import import ModelZipError, install_model_from_zip_file

DATASET = "Dataset999_Tiny"
MODEL = "nnUNetTrainerMultitask__nnUNetPlans__3d_fullres"
LOW = "nnUNetTrainerMultitask__nnUNetPlans__3d_lowres"
ENSEMBLE = f"ensembles/ensemble___{LOW}___{MODEL}___0_1"
POOLED = ("summary.json", "classification_summary.json", "classification.csv", "classification_joint.csv", "cross_validation.json")
CASE_LABELS = {"patient_7": {"subtype": "a"}}
OPTIONS = ["-tr", "nnUNetTrainerMultitask", "-f", "0", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two configurations of a dataset, an ensemble and what a training leaves beside its checkpoints. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / DATASET
    low = plans()
    low["configurations"] = {"3d_lowres": low["configurations"]["3d_fullres"]}
    for name, content in ((MODEL, plans()), (LOW, low)):
        model = write_model(
            folder / name,
            folds=(0, 1),
            classification=True,
            plans_content=content,
            trainer_name="nnUNetTrainerMultitask",
            dataset=dataset_json(classification=CLASSIFICATION, case_labels=CASE_LABELS, case_groups={"patient_7": "Jane Doe"}),
        )
        (model / "dataset_fingerprint.json").write_text("{}")
        (model / "classification_calibration.json").write_text("{}")
        for fold in ("fold_0", "fold_1"):
            (model / fold / "debug.json").write_text(
                json.dumps({"hostname": "ward7", "dataset_json": str(CASE_LABELS) * 9, "num_epochs": "5"})
            )
            (model / fold / "progress.png").write_bytes(b"\x89PNG\r\n\x1a\n")
            (model / fold / "training_log_1.txt").write_text("ward7")
            (model / fold / "validation").mkdir()
            for file in ("summary.json", "classification_summary.json", "classification.csv", "a.nii.gz", "a.npz", "a.pkl"):
                (model / fold / "validation" / file).write_text("{}")
        cross_validation = model / "crossval_results_folds_0_1"
        cross_validation.mkdir()
        for file in (*POOLED, "postprocessing.json"):
            (cross_validation / file).write_text("{}")
        (cross_validation / "postprocessing.pkl").write_bytes(pickle.dumps(([], [])))
        (cross_validation / "a.nii.gz").write_text("")
    (folder / ENSEMBLE).mkdir(parents=True)
    for file in POOLED:
        (folder / ENSEMBLE / file).write_text("{}")
    (folder / ENSEMBLE / "a.nii.gz").write_text("")
    for file in ("inference_information.json", "inference_instructions.txt"):
        (folder / file).write_text("{}")
    return folder


@pytest.fixture
def results(trained: Path, nnunet_folders: dict[str, Path]) -> Path:
    """``nnUNet_results`` with a copy of them."""
    shutil.copytree(trained, nnunet_folders["results"] / DATASET)
    return nnunet_folders["results"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Lets ``nnUNet_results`` point to a folder that does not exist yet."""

    def move() -> Path:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "other" / "results"))
        return tmp_path / "other" / "results"

    return move


def exported(folder: Path, *options: str) -> Path:
    file = folder / "model.zip"
    export_entry(["-d", "999", "-o", str(file), "-c", "3d_fullres", "3d_lowres", *OPTIONS, *options])
    return file


def names_in(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        return sorted(archive.namelist())


def with_members(file: Path, members: dict[str, Any]) -> Path:
    """A copy of a zip file with further members, or others; ``None`` leaves one out."""
    target = file.with_name("changed.zip")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            if member.filename not in members:
                new.writestr(member, old.read(member))
        for name, content in members.items():
            if content is not None:
                new.writestr(name, content)
    return target


# --- export


def test_a_zip_file_has_the_members_of_nnunet_and_what_classes_need(results, tmp_path) -> None:
    per_model = [
        *(f"fold_{fold}/{name}" for fold in (0, 1) for name in ("checkpoint_final.pth", "debug.json", "progress.png")),
        *(f"fold_{fold}/validation/{name}" for fold in (0, 1) for name in ("classification_summary.json", "summary.json")),
        *(f"crossval_results_folds_0_1/{name}" for name in ("postprocessing.json", "postprocessing.pkl", *POOLED)),
        *("classification_calibration.json", "dataset.json", "dataset_fingerprint.json", "plans.json"),
    ]
    expected = [f"{DATASET}/{model}/{name}" for model in (MODEL, LOW) for name in per_model]
    expected += [f"{DATASET}/{ENSEMBLE}/{name}" for name in POOLED]
    expected += [f"{DATASET}/{name}" for name in ("inference_information.json", "inference_instructions.txt")]
    file = exported(tmp_path)
    assert names_in(file) == sorted(expected)
    assert {member.compress_type for member in zipfile.ZipFile(file).infolist()} == {zipfile.ZIP_DEFLATED}
    predictions = set(names_in(exported(tmp_path, "--exp_cv_preds"))) - set(expected)
    per_model = ["crossval_results_folds_0_1/a.nii.gz"]
    per_model += [f"fold_{fold}/validation/{name}" for fold in (0, 1) for name in ("a.nii.gz", "classification.csv")]
    assert predictions == {f"{DATASET}/{model}/{name}" for model in (MODEL, LOW) for name in per_model}


def test_nothing_about_patients_or_the_machine_is_passed_on(results, tmp_path) -> None:
    file = exported(tmp_path)
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert b"ward7" not in content, name
            assert b"patient_7" not in content, name
            assert b"Jane Doe" not in content, name
        archive.extractall(tmp_path / "unpacked")
    assert json.loads((tmp_path / "unpacked" / DATASET / MODEL / "fold_0" / "debug.json").read_text()) == {"num_epochs": "5"}
    place = f"{DATASET}/{MODEL}/fold_1/checkpoint_final.pth"
    before, after = (torch.load(folder / place, weights_only=True) for folder in (results, tmp_path / "unpacked"))
    assert "case_labels" in before["init_args"]["dataset_json"]
    assert after["init_args"]["dataset_json"] == dataset_json(classification=CLASSIFICATION)
    before["init_args"]["dataset_json"] = after["init_args"]["dataset_json"]
    assert same(before, after)


def test_ensembles_of_models_that_are_not_exported_stay(results, tmp_path) -> None:
    export_entry(["-d", "999", "-o", str(tmp_path / "one.zip"), "-c", "3d_fullres", *OPTIONS])
    export_entry(["-d", "999", "-o", str(tmp_path / "fold.zip"), "-c", "3d_fullres", "3d_lowres", *OPTIONS[:-1]])
    for file in ("one.zip", "fold.zip"):
        assert not any("ensembles" in name for name in names_in(tmp_path / file))
    assert not any("crossval" in name or "fold_1" in name for name in names_in(tmp_path / "fold.zip"))


def test_what_is_missing_is_listed_or_left_out(results, tmp_path, capsys) -> None:
    (results / DATASET / LOW / "fold_1" / "checkpoint_final.pth").unlink()
    command = ["-d", "999", "-o", str(tmp_path / "model.zip"), "-tr", "nnUNetTrainerMultitask", "-f", "0", "1"]
    with pytest.raises(SystemExit):
        export_entry(command)
    printed = capsys.readouterr().err
    for missing in ("__2d: never trained", f"{LOW}/fold_1: checkpoint_final.pth", "3d_cascade_fullres: never trained", "--not_strict"):
        assert missing in printed
    assert list(tmp_path.glob("*.zip")) == []
    export_entry([*command, "--not_strict"])
    folds = {tuple(name.split("/")[1:3]) for name in names_in(tmp_path / "model.zip") if "/fold_" in name}
    assert folds == {(MODEL, "fold_0"), (MODEL, "fold_1"), (LOW, "fold_0")}
    assert "never trained" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        export_entry([*command[:-2], "7", "--not_strict"])
    assert "fold_7: never trained" in capsys.readouterr().err


def test_a_zip_file_is_replaced_and_nothing_else(results, tmp_path) -> None:
    exported(tmp_path)
    exported(tmp_path)
    (tmp_path / "thesis.pdf").write_text("mine")
    for target, error in (("thesis.pdf", FileExistsError), ("none/model.zip", FileNotFoundError)):
        with pytest.raises(error, match=target):
            export_pretrained_model(999, str(tmp_path / target), ["3d_fullres"], "nnUNetTrainerMultitask", folds=(0,))
    assert (tmp_path / "thesis.pdf").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")) == []


def test_fold_all_and_other_checkpoints_are_exported(results, tmp_path) -> None:
    model = results / DATASET / MODEL
    shutil.copytree(model / "fold_0", model / "fold_all")
    shutil.copy(model / "fold_all" / "checkpoint_final.pth", model / "fold_all" / "checkpoint_best_joint.pth")
    command = ["-d", DATASET, "-o", str(tmp_path / "m.zip"), "-c", "3d_fullres", "-tr", "nnUNetTrainerMultitask", "-f", "all"]
    export_entry([*command, "-chk", "checkpoint_final.pth", "checkpoint_best_joint.pth"])
    checkpoints = [name.split("/", 2)[2] for name in names_in(tmp_path / "m.zip") if name.endswith(".pth")]
    assert checkpoints == ["fold_all/checkpoint_best_joint.pth", "fold_all/checkpoint_final.pth"]


def test_what_the_instructions_for_a_chosen_checkpoint_need_is_exported(results, tmp_path, capsys) -> None:
    """The folder of the postprocessing and its plans; what belongs to other checkpoints or folds stays."""
    model = results / DATASET / MODEL
    for name in ("best_joint", "best"):
        pooled = shutil.copytree(model / "crossval_results_folds_0_1", model / f"crossval_results_folds_0_1_{name}")
        shutil.copy(model / "plans.json", pooled)
        for fold in ("fold_0", "fold_1"):
            shutil.copy(model / fold / "checkpoint_final.pth", model / fold / f"checkpoint_{name}.pth")
            shutil.copytree(model / fold / "validation", model / fold / f"validation_{name}")
    shutil.copytree(model / "crossval_results_folds_0_1_best_joint", model / "crossval_results_folds_0_1_2_best_joint")
    chosen = {"configuration": "3d_fullres", "trainer": "nnUNetTrainerMultitask", "plans_identifier": "nnUNetPlans"}
    information = {"best_model_or_ensemble": {"selected_model_or_models": [{**chosen, "checkpoint": "checkpoint_best_joint.pth"}]}}
    (results / DATASET / "inference_information.json").write_text(json.dumps(information))
    note = f"The instructions predict {MODEL} with checkpoint_best_joint.pth, which is not in the zip file. Add it with -chk."
    assert not any("best" in name for name in names_in(exported(tmp_path)))
    assert note in capsys.readouterr().out
    export_entry(["-d", "999", "-o", str(tmp_path / "m.zip"), "-c", "3d_fullres", *OPTIONS, "-chk", "checkpoint_best_joint.pth"])
    assert note not in capsys.readouterr().out
    expected = [
        f"crossval_results_folds_0_1_best_joint/{name}" for name in ("plans.json", "postprocessing.json", "postprocessing.pkl", *POOLED)
    ]
    for fold in (0, 1):
        expected += [f"fold_{fold}/validation_best_joint/{name}" for name in ("classification_summary.json", "summary.json")]
        expected += [f"fold_{fold}/checkpoint_best_joint.pth"]
    found = [name.removeprefix(f"{DATASET}/{MODEL}/") for name in names_in(tmp_path / "m.zip") if "best" in name]
    assert found == sorted(expected)


def test_what_else_is_needed_to_predict_is_said(tmp_path, nnunet_folders, capsys) -> None:
    content = plans()
    configurations = content["configurations"]
    configurations["3d_cascade_fullres"] = configurations["3d_fullres"] | {"previous_stage": "3d_lowres"}
    content["configurations"] = {"3d_cascade_fullres": configurations["3d_cascade_fullres"], "3d_fullres": configurations["3d_fullres"]}
    write_model(nnunet_folders["results"] / DATASET / "nnUNetTrainerOfMine__nnUNetPlans__3d_cascade_fullres", plans_content=content)
    export_entry(["-d", "999", "-o", str(tmp_path / "m.zip"), "-c", "3d_cascade_fullres", "-tr", "nnUNetTrainerOfMine", "-f", "0"])
    printed = capsys.readouterr().out
    assert "3d_cascade_fullres starts from predictions of 3d_lowres" in printed
    assert "nnUNetTrainerOfMine is not part of nnunetv2" in printed


# --- installation


def test_an_installed_model_is_the_exported_one_without_permissions_to_run(results, tmp_path, elsewhere, capsys) -> None:
    file = exported(tmp_path)
    programs = with_members(file, {})
    with zipfile.ZipFile(programs) as archive:
        members = {member: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(programs, "w") as archive:
        for member, content in members.items():
            member.external_attr = (stat.S_IFREG | 0o6777) << 16
            archive.writestr(member, content)
    new = elsewhere()
    install_entry([str(programs)])
    printed = capsys.readouterr().out
    assert f"nnUNetv2_predict -d {DATASET} -c 3d_fullres -tr nnUNetTrainerMultitask -p nnUNetPlans -f 0 1" in printed
    assert "terms of their own" in printed
    assert files_of(new) == names_in(file)
    assert not any(path.stat().st_mode & 0o6111 for path in new.rglob("*") if path.is_file())
    assert same(*(torch.load(root / DATASET / LOW / "fold_0/checkpoint_final.pth")["network_weights"] for root in (results, new)))
    assert [path.name for path in new.iterdir()] == [DATASET]  # nothing temporary is left


def test_a_model_is_replaced_only_on_demand_and_as_a_whole(results, tmp_path, elsewhere, capsys) -> None:
    file = exported(tmp_path)
    new = elsewhere()
    install_entry([str(file)])
    (new / DATASET / "inference_information.json").write_text("mine")
    shutil.rmtree(new / DATASET / LOW)
    (new / DATASET / MODEL / "fold_2").mkdir()
    before = files_of(new)
    with pytest.raises(SystemExit):
        install_entry([str(file)])
    printed = capsys.readouterr().err
    assert MODEL in printed
    assert "--overwrite" in printed
    assert files_of(new) == before
    install_entry([str(file), "--overwrite"])
    assert files_of(new) == names_in(file)
    assert not (new / DATASET / MODEL / "fold_2").exists()
    assert (new / DATASET / "inference_information.json").read_text() == "{}"


def test_files_beside_other_models_of_the_dataset_are_kept(results, tmp_path, elsewhere, capsys) -> None:
    file = exported(tmp_path)
    new = elsewhere()
    (new / DATASET).mkdir(parents=True)
    (new / DATASET / "inference_information.json").write_text("mine")
    (new / "Dataset999_Other").mkdir()
    install_entry([str(file)])
    assert (new / DATASET / "inference_information.json").read_text() == "mine"
    printed = capsys.readouterr().out
    assert "Kept as it was" in printed
    assert "Dataset999_Other has the same number" in printed


def test_after_an_error_in_between_the_replaced_models_are_back(results, tmp_path, monkeypatch) -> None:
    file = exported(tmp_path)
    (results / DATASET / LOW / "mine.txt").write_text("mine")
    before, move = files_of(results), shutil.move

    def failing(source: Path, target: Path) -> None:
        if Path(target).name == MODEL and "unpacked" in str(source):
            raise OSError("no more")
        move(source, target)

    monkeypatch.setattr("nnunetv2.model_sharing.model_import.shutil.move", failing)
    with pytest.raises(OSError, match="no more"):
        install_model_from_zip_file(str(file), overwrite=True)
    assert files_of(results) == before


def link_to(target: str) -> tuple[zipfile.ZipInfo, str]:
    link = zipfile.ZipInfo(f"{DATASET}/{MODEL}/plans2.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return link, target


class Code:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("../outside.json", "{}", "leads out of the folder"),
        ("/tmp/outside.json", "{}", "leads out of the folder"),
        (f"{DATASET}/../../outside.json", "{}", "leads out of the folder"),
        (f"{DATASET}/{MODEL}/./plans3.json", "{}", "leads out of the folder"),
        (f"{DATASET}\\..\\outside.json", "{}", "leads out of the folder"),
        ("C:/outside.json", "{}", "leads out of the folder"),
        (f"{DATASET}/{MODEL}/a\nb.json", "{}", "not every system can write"),
        (f"{DATASET}/{MODEL}/trainer.py", "import os", "not a file of a model"),
        (f"{DATASET}/{MODEL}/fold_0/run.sh", "#!/bin/sh", "not a file of a model"),
        (f"{DATASET}/{MODEL}/fold_0/lib.so", "\x7fELF", "not a file of a model"),
        (f"{DATASET}/{MODEL}/fold_0/progress2.png", b"\x7fELF...", "is a program"),
        (f"{DATASET}/{MODEL}/fold_0/notes.txt", "#!/bin/sh\n", "is a program"),
        (f"{DATASET}/{MODEL}/fold_0/.bashrc.txt", "", "not a file of a model"),
        (f"{DATASET}/{MODEL}/weights.pth", "", "not a file of a model"),
        ("Task004_Hippocampus/plans.json", "{}", "not a file of a model"),
        ("readme.txt", "", "not a file of a model"),
        (f"{DATASET}/{MODEL}/Plans.json", "{}", "twice"),
        (f"{DATASET}/{MODEL}/plans.json/x.json", "{}", "a file and a folder"),
        (f"{DATASET}/{MODEL}/fold_0/checkpoint_best.pth", b"no zip file", "checkpoint_best.pth"),
        (f"{DATASET}/{MODEL}/fold_0/checkpoint_best.pth", pickle.dumps(Code()), "checkpoint_best.pth"),
        (f"{DATASET}/{MODEL}/crossval_results_folds_0/postprocessing.pkl", pickle.dumps(Code()), "system, which is not plain data"),
        (f"{DATASET}/{MODEL}/plans.json", "[]", "holds no plans"),
        (f"{DATASET}/{MODEL}/plans.json", "{}", "no plans file"),
        (f"{DATASET}/{MODEL}/dataset.json", "[]", "not the dataset.json"),
        (f"{DATASET}/{MODEL}/dataset.json", None, "dataset.json is missing"),
        (f"{DATASET}/{MODEL}/plans.json", "{", "not valid JSON"),
        (f"{DATASET}/{MODEL}__again__x/plans.json", "{}", "no `configurations`"),
        (*link_to("/etc/passwd"), "a link"),
    ],
)  # fmt: skip
def test_what_could_do_harm_or_is_no_model_is_refused_and_nothing_is_installed(
    results, tmp_path, elsewhere, monkeypatch, name, content, message
) -> None:
    file = with_members(exported(tmp_path), {name: content})
    new = elsewhere()
    monkeypatch.chdir(tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(ModelZipError, match=message) as caught:
        install_model_from_zip_file(str(file))
    assert str(file) in str(caught.value)
    assert files_of(tmp_path) == before
    assert list(new.iterdir()) == []


def test_the_functions_of_postprocessing_are_let_through(results, tmp_path, elsewhere) -> None:
    name = f"{DATASET}/{MODEL}/crossval_results_folds_0/postprocessing.pkl"
    function = b"cnnunetv2.postprocessing.remove_connected_components\nremove_all_but_largest_component_from_segmentation\n"
    file = with_members(exported(tmp_path), {name: b"((l" + function + b"a(lt."})
    new = elsewhere()
    install_model_from_zip_file(str(file))
    assert (new / name).is_file()


def test_clutter_of_file_managers_is_left_out(results, tmp_path, elsewhere) -> None:
    clutter = {f"__MACOSX/{DATASET}/._plans.json": "x", f"{DATASET}/.DS_Store": "x", f"{DATASET}/{MODEL}/fold_0/Thumbs.db": "x"}
    file = with_members(exported(tmp_path), clutter)
    new = elsewhere()
    install_model_from_zip_file(str(file))
    assert files_of(new) == [name for name in names_in(file) if name not in clutter]


def test_a_zip_bomb_is_noticed_before_it_unpacks(results, tmp_path, elsewhere, monkeypatch) -> None:
    monkeypatch.setattr("nnunetv2.model_sharing.model_import.HARMLESS_BYTES", 10**6)
    file = with_members(exported(tmp_path), {f"{DATASET}/{MODEL}/fold_0/bomb.json": b"0" * 10**7})
    new = elsewhere()
    with pytest.raises(ModelZipError, match=r"fold_0/bomb.json would grow from 0.0 MB to 10.0 MB"):
        install_model_from_zip_file(str(file))
    assert list(new.iterdir()) == []


def test_members_that_share_their_bytes_are_refused(results, tmp_path, elsewhere) -> None:
    file = tmp_path / "overlap.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{DATASET}/{MODEL}/a.txt", os.urandom(2000))
        for index in range(50):
            member = zipfile.ZipInfo(f"{DATASET}/{MODEL}/{index}.txt")
            first = archive.infolist()[0]
            member.header_offset, member.CRC, member.compress_size, member.file_size = first.header_offset, first.CRC, 2000, 2000
            archive.filelist.append(member)
    elsewhere()
    with pytest.raises(ModelZipError, match="overlap"):
        install_model_from_zip_file(str(file))


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(results, tmp_path, elsewhere, monkeypatch) -> None:
    file = exported(tmp_path)
    elsewhere()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("nnunetv2.model_sharing.model_import.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"only 0\.0 MB are free"):
        install_model_from_zip_file(str(file))


@pytest.mark.parametrize("damage", ["truncated", "one byte", "web page", "empty"])
def test_a_damaged_zip_file_installs_nothing(results, tmp_path, elsewhere, damage) -> None:
    file = exported(tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "one byte":
        with zipfile.ZipFile(file) as archive:
            offset = max(archive.infolist(), key=lambda member: member.file_size).header_offset
        content[offset + 500] ^= 0xFF
    changed = {"truncated": content[:-3000], "one byte": content, "web page": b"<html>Sign in</html>", "empty": b"PK\5\6" + bytes(18)}
    file.write_bytes(changed[damage])
    new = elsewhere()
    with pytest.raises(ModelZipError):
        install_model_from_zip_file(str(file))
    assert list(new.iterdir()) == []


def test_the_checksum_is_compared(results, tmp_path, elsewhere, capsys) -> None:
    file = exported(tmp_path)
    digest = capsys.readouterr().out.split("SHA-256: ")[1].split()[0]
    new = elsewhere()
    for wrong, message in (("0" * 64, f"its SHA-256 is {digest}"), ("abc", "is no SHA-256")):
        with pytest.raises(ValueError, match=message):
            install_model_from_zip_file(str(file), sha256=wrong)
    install_entry([str(file), "-sha256", digest.upper()])
    assert (new / DATASET / MODEL).is_dir()


def test_without_results_folder_or_file_it_says_so(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        install_model_from_zip_file(str(tmp_path / "none.zip"))
    (tmp_path / "a.zip").write_text("x")
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(RuntimeError, match="nnUNet_results is not set"):
        install_model_from_zip_file(str(tmp_path / "a.zip"))


# --- download


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file in several ways; the path says how."""

    content = b""

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/known")
            return self.end_headers()
        if self.path not in ("/known", "/unknown", "/short"):
            return self.send_error(404)
        self.send_response(200)
        if self.path != "/unknown":
            self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) // 2] if self.path == "/short" else self.content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("path", ["known", "unknown", "moved"])
def test_a_model_is_downloaded_whether_or_not_its_length_is_known(results, tmp_path, elsewhere, server, path) -> None:
    file = exported(tmp_path)
    Handler.content = file.read_bytes()
    new = elsewhere()
    download_entry([f"{server}/{path}"])
    assert files_of(new) == names_in(file)
    assert [entry.name for entry in new.iterdir()] == [DATASET]
    with pytest.raises(SystemExit):
        download_entry([f"{server}/{path}"])
    download_entry([f"{server}/{path}", "--overwrite"])


def test_a_download_that_breaks_off_or_is_not_there_leaves_nothing(tmp_path, elsewhere, server, capsys) -> None:
    Handler.content = bytes(1000)
    for path, message in (("short", "broke off after 500 of 1000 bytes"), ("none", "404")):
        with pytest.raises(DownloadError, match=message):
            download_file(f"{server}/{path}", str(tmp_path / "file"))
    new = elsewhere()
    with pytest.raises(SystemExit):
        download_entry([f"{server}/known"])
    assert f"{server}/known is no whole zip file" in capsys.readouterr().err
    for address in (f"file://{tmp_path}/x.zip", "ftp://127.0.0.1/x.zip", "x.zip"):
        with pytest.raises(DownloadError, match="no address of the web"):
            download_file(address, str(tmp_path / "file"))
    assert list(new.iterdir()) == list(tmp_path.glob("file")) == []


# --- with stock nnU-Net, a program that is run and nothing more


@pytest.fixture
def plain(nnunet_folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A model without heads that stock nnU-Net can predict with, and an image."""
    model = write_model(nnunet_folders["results"] / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=(0, 1))
    (model / "dataset_fingerprint.json").write_text("{}")
    for fold in ("fold_0", "fold_1"):
        (model / fold / "debug.json").write_text("{}")
        (model / fold / "progress.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (model / fold / "validation").mkdir()
        (model / fold / "validation" / "summary.json").write_text("{}")
    write_images(tmp_path / "images", number=1)
    return nnunet_folders


PREDICT = ["-d", "999", "-c", "3d_fullres", "-f", "0", "1", "-device", "cpu", "-npp", "1", "-nps", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("maker", ["ours", "stock"])
def test_zip_files_of_stock_nnunet_are_installed_here_and_the_reverse(reference, plain, tmp_path, elsewhere, monkeypatch, maker) -> None:
    file = tmp_path / "model.zip"
    options = ["-d", "999", "-o", str(file), "-c", "3d_fullres", "-f", "0", "1"]
    folders = {f"nnUNet_{name}": plain[name] for name in ("raw", "preprocessed", "results")}
    if maker == "ours":
        export_entry(options)
    else:
        run_reference(reference / "nnUNetv2_export_model_to_zip", *options, **folders)
    monkeypatch.setenv("nnUNet_half_accumulation", "1")
    predict_entry(["-i", str(tmp_path / "images"), "-o", str(tmp_path / "before"), *PREDICT])
    new = elsewhere()
    if maker == "ours":
        new.mkdir(parents=True)
        folders["nnUNet_results"] = new
        run_reference(reference / "nnUNetv2_install_pretrained_model_from_zip", file, **folders)
        predict = [reference / "nnUNetv2_predict", "-i", tmp_path / "images", "-o", tmp_path / "after", *PREDICT]
        run_reference(*predict, **folders)
    else:
        install_entry([str(file)])
        predict_entry(["-i", str(tmp_path / "images"), "-o", str(tmp_path / "after"), *PREDICT])
    assert files_of(new) == names_in(file)
    masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / side / "case_0.nii.gz"))) for side in ("before", "after")]
    np.testing.assert_array_equal(*masks)
    assert len(np.unique(masks[0])) > 1

"""Cross-validation, postprocessing and ensembles against stock nnU-Net 2.8.1, run as a program, where ``NNUNET_REFERENCE`` names its Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from stock_nnunet import run_reference, run_reference_program
from tiny_cross_validations import FULL, REGIONS, TWO, TinyCrossValidation, write_cross_validation

from nnunetv2.cli.ensemble import main as ensemble
from nnunetv2.cli.find_best_configuration import find_best_configuration_entry
from nnunetv2.cli.postprocessing import apply_postprocessing_entry
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from nnunetv2.evaluation.find_best_configuration import print_inference_instructions
from nnunetv2.postprocessing.remove_connected_components import load_postprocessing
from nnunetv2.utilities.file_io import load_json, save_json

PAIR = f"ensemble___{TWO}___{FULL}___0_1_2"
MODELS = ["1", "-c", "2d", "3d_fullres", "-f", "0", "1", "2", "-np", "1"]
CROSSVAL = "crossval_results_folds_0_1_2"
KINDS = {
    "labels": {},
    "regions": {"labels": REGIONS, "regions_class_order": [1, 2]},
    "ignore": {"labels": {"background": 0, "organ": 1, "ignore": 2}, "blobs": (1,)},
}

READ_OURS = r"""
import json, sys
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from nnunetv2.evaluation.find_best_configuration import print_inference_instructions
summary, information = sys.argv[1:]
content = load_summary_json(summary)
print('READ', json.dumps({'keys': [str(k) for k in content['mean']], 'dice': content['foreground_mean']['Dice']}))
print_inference_instructions(json.load(open(information)))
"""


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: read(file) for file in sorted(folder.glob("*.nii.gz"))}


def assert_same_masks(first: Path, second: Path) -> None:
    ours, theirs = masks(first), masks(second)
    assert list(ours) == list(theirs) != []
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def without_paths(content: Any) -> Any:
    """Paths shortened to the part that does not depend on where the results are."""
    if isinstance(content, dict):
        return {key: without_paths(value) for key, value in content.items() if key not in ("prediction_file", "reference_file")}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    return content.split("Dataset001_Tiny", 1)[-1] if isinstance(content, str) else content


def numbers_of(file: Path) -> str:
    """A JSON file without paths, as text, so that NaN equals NaN and every digit counts."""
    return json.dumps(without_paths(load_json(file)), sort_keys=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_both_find_the_same_and_read_each_others_files(reference, nnunet_folders, tmp_path, kind, capsys) -> None:
    dataset: TinyCrossValidation = write_cross_validation(nnunet_folders, **KINDS[kind])
    theirs = tmp_path / "their_results"
    shutil.copytree(nnunet_folders["results"], theirs)
    folders = {f"nnUNet_{name}": nnunet_folders[name] for name in ("raw", "preprocessed")}
    run_reference(reference / "nnUNetv2_find_best_configuration", *MODELS, nnUNet_results=theirs, **folders)
    find_best_configuration_entry(MODELS)

    ours, theirs = dataset.results, theirs / dataset.results.name
    for folder in (f"{TWO}/{CROSSVAL}", f"{FULL}/{CROSSVAL}", f"ensembles/{PAIR}"):
        assert numbers_of(ours / folder / "summary.json") == numbers_of(theirs / folder / "summary.json")
        assert_same_masks(ours / folder, theirs / folder)
    assert numbers_of(ours / "inference_information.json") == numbers_of(theirs / "inference_information.json")
    folder = Path(load_json(ours / "inference_information.json")["best_model_or_ensemble"]["postprocessing_file"]).parent
    best, their_best = folder, theirs / folder.relative_to(ours)
    assert numbers_of(best / "postprocessing.json") == numbers_of(their_best / "postprocessing.json")
    assert numbers_of(best / "postprocessed" / "summary.json") == numbers_of(their_best / "postprocessed" / "summary.json")
    assert_same_masks(best / "postprocessed", their_best / "postprocessed")

    # theirs, read here
    functions, arguments = load_postprocessing(their_best / "postprocessing.pkl")
    assert (functions, arguments) == load_postprocessing(best / "postprocessing.pkl")
    assert functions
    assert load_summary_json(their_best / "summary.json")["mean"] == load_summary_json(best / "summary.json")["mean"]
    capsys.readouterr()
    print_inference_instructions(load_json(theirs / "inference_information.json"))
    assert "nnUNetv2_apply_postprocessing" in capsys.readouterr().out

    # ours, read there
    printed = run_reference_program(
        reference, READ_OURS, best / "summary.json", ours / "inference_information.json",
        nnUNet_results=nnunet_folders["results"], **folders,
    )  # fmt: skip
    told = json.loads(printed.split("READ", 1)[1].splitlines()[0])
    assert told == {
        "keys": list(load_json(best / "summary.json")["mean"]),
        "dice": load_json(best / "summary.json")["foreground_mean"]["Dice"],
    }
    assert str(best / "postprocessing.pkl") in printed
    options = ["-i", best, "-pp_pkl_file", best / "postprocessing.pkl", "-np", "1"]
    run_reference(
        reference / "nnUNetv2_apply_postprocessing",
        *options,
        "-o",
        tmp_path / "applied_there",
        nnUNet_results=nnunet_folders["results"],
        **folders,
    )
    assert_same_masks(tmp_path / "applied_there", best / "postprocessed")
    options = ["-i", str(best), "-pp_pkl_file", str(their_best / "postprocessing.pkl"), "-np", "1"]
    apply_postprocessing_entry([*options, "-o", str(tmp_path / "applied_here")])
    assert_same_masks(tmp_path / "applied_here", best / "postprocessed")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_both_average_the_same(reference, nnunet_folders, tmp_path, kind) -> None:
    dataset = write_cross_validation(
        nnunet_folders, num_cases=2, num_folds=1, models={TWO: 1.5, FULL: 1.5, f"{FULL}_x": 2.0}, **KINDS[kind]
    )
    members = [model / "fold_0" / "validation" for model in sorted(dataset.results.iterdir())]
    assert len(members) == 3
    for member in members:
        for name in ("dataset.json", "plans.json"):
            shutil.copy(member.parents[1] / name, member / name)
    folders = {f"nnUNet_{name}": nnunet_folders[name] for name in ("raw", "preprocessed", "results")}
    options = ["-i", *map(str, members), "-np", "1", "--save_npz", "-o"]
    run_reference(reference / "nnUNetv2_ensemble", *options, tmp_path / "theirs", **folders)
    ensemble([*options, str(tmp_path / "ours")])
    assert_same_masks(tmp_path / "ours", tmp_path / "theirs")
    for file in (tmp_path / "theirs").glob("*.npz"):
        there, here = (np.load(tmp_path / side / file.name)["probabilities"] for side in ("theirs", "ours"))
        np.testing.assert_array_equal(here, there)
    # The result of one is a member for the other.
    run_reference(reference / "nnUNetv2_ensemble", "-i", tmp_path / "ours", members[0], "-o", tmp_path / "again_there", "-np", 1, **folders)
    save_json(load_json(members[0] / "plans.json"), tmp_path / "theirs" / "plans.json")  # which 2.8.1 leaves out
    ensemble(["-i", str(tmp_path / "theirs"), str(members[0]), "-o", str(tmp_path / "again_here"), "-np", "1"])
    assert_same_masks(tmp_path / "again_here", tmp_path / "again_there")

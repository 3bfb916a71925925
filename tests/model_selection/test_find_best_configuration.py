from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_cross_validations import CASCADE, DATASET, FULL, LOWRES, TWO, TinyCrossValidation, write_cross_validation
from tiny_datasets import SUBTYPE

from nnunetv2.cli.find_best_configuration import find_best_configuration_entry
from nnunetv2.cli.predict import build_predict_parser
from nnunetv2.ensembling.ensemble import ensemble_crossvalidations
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.evaluation.accumulate_cv_results import validated_checkpoints
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from nnunetv2.evaluation.find_best_configuration import (
    default_trained_models,
    dumb_trainer_config_plans_to_trained_models_dict,
    filter_available_models,
    find_best_configuration,
    generate_inference_command,
    print_inference_instructions,
)
from nnunetv2.model_selection.find_best_configuration import Candidate, _best_checkpoint
from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing, load_postprocessing
from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv, write_classification_csv

PAIR = f"ensemble___{TWO}___{FULL}___0_1_2"
BOTH = ["1", "-c", "2d", "3d_fullres", "-f", "0", "1", "2", "-np", "1"]


def information(dataset: TinyCrossValidation) -> dict:
    return load_json(dataset.results / "inference_information.json")


def commands(dataset: TinyCrossValidation) -> list[list[str]]:
    text = (dataset.results / "inference_instructions.txt").read_text()
    return [shlex.split(line) for line in text.splitlines() if line.startswith("nnUNetv2_")]


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def test_the_highest_dice_wins_and_its_commands_are_written_down(nnunet_folders, capsys) -> None:
    dataset = write_cross_validation(nnunet_folders)
    find_best_configuration_entry(BOTH)
    found = information(dataset)
    assert list(found["all_results"]) == sorted([TWO, FULL, PAIR])
    best = found["best_model_or_ensemble"]
    assert best["result_on_crossval_pre_pp"] == found["all_results"][PAIR] == max(found["all_results"].values())
    folder = dataset.results / "ensembles" / PAIR
    summary = load_summary_json(folder / "summary.json")
    assert found["all_results"][PAIR] == pytest.approx(np.mean([summary["mean"][label]["Dice"] for label in (1, 2)]))
    assert best["result_on_crossval_post_pp"] > best["result_on_crossval_pre_pp"]
    assert [entry["configuration"] for entry in best["selected_model_or_models"]] == ["2d", "3d_fullres"]
    assert "classification" not in found
    assert load_postprocessing(best["postprocessing_file"])[1][0] == {"labels_or_regions": [1, 2]}
    predict_2d, predict_full, average, postprocess = commands(dataset)
    for words, configuration in ((predict_2d, "2d"), (predict_full, "3d_fullres")):
        assert option(words, "-c") == configuration
        args = build_predict_parser().parse_args(words[1:])
        assert (args.d, args.f, args.save_probabilities, args.save_cls) == (DATASET, [0, 1, 2], True, None)
    assert average[:4] == ["nnUNetv2_ensemble", "-i", option(predict_2d, "-o"), option(predict_full, "-o")]
    assert option(postprocess, "-i") == option(average, "-o")
    assert option(postprocess, "-pp_pkl_file") == str(folder / "postprocessing.pkl")
    assert Path(option(postprocess, "-plans_json")).is_file()
    assert (dataset.results / "inference_instructions.txt").read_text() in capsys.readouterr().out


def test_without_ensembles_no_probabilities_are_needed(nnunet_folders) -> None:
    dataset = write_cross_validation(nnunet_folders)
    for file in dataset.results.rglob("*.npz"):
        file.unlink()
    find_best_configuration_entry([*BOTH, "--disable_ensembling"])
    assert set(information(dataset)["all_results"]) == {TWO, FULL}
    assert len(commands(dataset)) == 2
    with pytest.raises(SystemExit):
        find_best_configuration_entry(BOTH)


def test_a_cascade_is_predicted_after_its_previous_stage(nnunet_folders) -> None:
    dataset = write_cross_validation(nnunet_folders, models={CASCADE: 0.8, TWO: 3.0})
    options = ["1", "-c", "3d_cascade_fullres", "2d", "-f", "0", "1", "2", "-np", "1", "--disable_ensembling"]
    find_best_configuration_entry(options)
    first, second, _ = commands(dataset)
    assert (option(first, "-c"), option(second, "-c")) == ("3d_lowres", "3d_cascade_fullres")
    assert option(second, "-prev_stage_predictions") == option(first, "-o") != option(second, "-o")
    assert "--save_probabilities" not in first


def test_a_cascade_uses_the_member_that_is_its_previous_stage(nnunet_folders) -> None:
    dataset = write_cross_validation(nnunet_folders, models={CASCADE: 1.5, LOWRES: 1.5})
    find_best_configuration_entry(["1", "-c", "3d_cascade_fullres", "3d_lowres", "-f", "0", "1", "2", "-np", "1"])
    first, second, average, _ = commands(dataset)
    assert (option(first, "-c"), option(second, "-c")) == ("3d_lowres", "3d_cascade_fullres")
    assert option(second, "-prev_stage_predictions") == option(first, "-o") == "OUTPUT_FOLDER_MODEL_2"
    assert average[2:4] == ["OUTPUT_FOLDER_MODEL_1", "OUTPUT_FOLDER_MODEL_2"]


@pytest.fixture
def joint(nnunet_folders) -> TinyCrossValidation:
    return write_cross_validation(
        nnunet_folders,
        models={FULL: 0.8, TWO: 3.0},
        classification={"subtype": SUBTYPE},
        certainty={FULL: {"refit": 0.1, "joint": 0.3}, TWO: {"refit": 0.95, "joint": 0.1}},
        num_cases=12,
    )


def test_classes_stand_beside_the_dice_and_choose_heads_alone(joint, capsys) -> None:
    find_best_configuration_entry([*BOTH, "--disable_ensembling"])
    found = information(joint)
    classes = found["classification"]
    scores = classes["case_scores_of_heads"]
    assert scores[FULL]["joint"] > scores[FULL]["refit"]
    assert scores[TWO]["refit"] == 1
    assert classes["all_results"][FULL]["case_score"] == scores[FULL]["joint"]
    assert classes["all_results"][TWO]["tasks"]["subtype"]["n"] == 12
    (selected,) = found["best_model_or_ensemble"]["selected_model_or_models"]
    assert (selected["configuration"], selected["classification_heads"], selected["classification_aggregation"]) == (
        "3d_fullres",
        "joint",
        "evidence",
    )
    args = build_predict_parser().parse_args(commands(joint)[0][1:])
    assert (args.save_cls, args.cls_heads, args.cls_aggregation) == (True, "joint", None)
    text = (joint.results / "inference_instructions.txt").read_text()
    assert f"By the case score {TWO} would be the best (1.0000)" in text
    assert "being the best of 2" in text
    assert re.search(r"case score 0\.\d{4}: subtype macro_f1 0\.\d{4} \(n 12\)", text)


def test_a_pair_averages_the_classes_of_the_chosen_heads(joint) -> None:
    find_best_configuration_entry(BOTH)
    tasks = classification_tasks(load_json(joint.raw / "dataset.json"))
    rows = read_classification_csv(joint.results / "ensembles" / PAIR / "classification.csv", tasks)
    chosen = [
        read_classification_csv(joint.results / model / "crossval_results_folds_0_1_2" / table, tasks)
        for model, table in ((TWO, "classification.csv"), (FULL, "classification_joint.csv"))
    ]
    for case, row in rows.items():
        np.testing.assert_allclose(row["subtype"], (chosen[0][case]["subtype"] + chosen[1][case]["subtype"]) / 2)
    assert PAIR in information(joint)["classification"]["all_results"]


def test_the_vote_of_the_tiles_and_the_checkpoint_reach_the_commands(joint) -> None:
    tasks = classification_tasks(load_json(joint.raw / "dataset.json"))
    for fold in range(3):
        validation = joint.results / FULL / f"fold_{fold}" / "validation"
        rows = read_classification_csv(validation / "classification_joint.csv", tasks)
        sure = {case: {name: np.eye(2)[int(case[-1]) % 2] for name in row} for case, row in rows.items()}
        write_classification_csv(validation / "classification_joint_max.csv", tasks, sure)
        save_json({**load_json(validation / "summary.json"), "checkpoint": "checkpoint_best.pth"}, validation / "summary.json")
    find_best_configuration_entry(["1", "-c", "3d_fullres", "-f", "0", "1", "2", "-np", "1"])
    args = build_predict_parser().parse_args(commands(joint)[0][1:])
    assert (args.cls_heads, args.cls_aggregation, args.chk) == ("joint", "max", "checkpoint_best.pth")


def validate_further_checkpoint(model: Path, checkpoint: str, tasks: dict, folds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Leave of a model what ``-val_chk`` leaves: the same segmentations, classes that are always right."""
    name = checkpoint.removeprefix("checkpoint_").removesuffix(".pth")
    for fold in folds:
        target = model / f"fold_{fold}" / f"validation_{name}"
        (model / f"fold_{fold}" / checkpoint).touch()
        shutil.copytree(model / f"fold_{fold}" / "validation", target)
        for file in target.glob("classification_joint*.csv"):
            file.unlink()
        rows = read_classification_csv(target / "classification.csv", tasks)
        sure = {case: {task: np.eye(2)[int(case[-1]) % 2] for task in row} for case, row in rows.items()}
        write_classification_csv(target / "classification.csv", tasks, sure)
        save_json({"joint": {}}, target / "classification_summary.json")
        save_json({**load_json(target / "summary.json"), "checkpoint": checkpoint}, target / "summary.json")


def test_the_checkpoint_is_chosen_where_several_were_validated(joint) -> None:
    tasks = classification_tasks(load_json(joint.raw / "dataset.json"))
    validate_further_checkpoint(joint.results / FULL, "checkpoint_best_joint.pth", tasks)
    find_best_configuration_entry(BOTH)
    found = information(joint)
    compared = found["checkpoints"][FULL]
    assert list(compared) == ["checkpoint_best_joint.pth", "checkpoint_final.pth"]  # the file is sorted
    assert compared["checkpoint_best_joint.pth"]["case_scores_of_heads"] == {"joint": 1.0}
    assert compared["checkpoint_final.pth"]["dice"] == compared["checkpoint_best_joint.pth"]["dice"] == found["all_results"][FULL]
    assert TWO not in found["checkpoints"]
    assert found["classification"]["all_results"][FULL]["case_score"] == 1
    (selected,) = found["best_model_or_ensemble"]["selected_model_or_models"]
    assert (selected["checkpoint"], selected["classification_heads"]) == ("checkpoint_best_joint.pth", "joint")
    args = build_predict_parser().parse_args(commands(joint)[0][1:])
    assert (args.chk, args.cls_heads) == ("checkpoint_best_joint.pth", "joint")
    text = (joint.results / "inference_instructions.txt").read_text()
    assert re.search(r"checkpoint_best_joint\.pth: Dice 0\.\d{4}, joint heads 1\.0000", text)
    assert "Of these 3 checkpoints and heads those with the highest mean of Dice and case score are taken; being the best of 3" in text
    # The pair averages what the chosen checkpoint predicted.
    pair = read_classification_csv(joint.results / "ensembles" / PAIR / "classification.csv", tasks)
    first = read_classification_csv(joint.results / TWO / "crossval_results_folds_0_1_2" / "classification.csv", tasks)
    for case, row in pair.items():
        np.testing.assert_allclose(row["subtype"], (first[case]["subtype"] + np.eye(2)[int(case[-1]) % 2]) / 2)


def test_the_dice_counts_as_much_as_the_classes_when_the_checkpoint_is_chosen(joint, capsys) -> None:
    """The classes are all right, but most of the segmentation is gone."""
    tasks = classification_tasks(load_json(joint.raw / "dataset.json"))
    validate_further_checkpoint(joint.results / FULL, "checkpoint_best_joint.pth", tasks)
    validate_further_checkpoint(joint.results / FULL, "checkpoint_best.pth", tasks, folds=(0, 2))
    for file in joint.results.rglob("validation_best_joint/*.nii.gz"):
        sitk.WriteImage(0 * sitk.ReadImage(str(file)), str(file))
    find_best_configuration_entry(["1", "-c", "3d_fullres", "-f", "0", "1", "2", "-np", "1"])
    found = information(joint)
    assert list(found["checkpoints"][FULL]) == ["checkpoint_best_joint.pth", "checkpoint_final.pth"]
    assert "checkpoint" not in found["best_model_or_ensemble"]["selected_model_or_models"][0]
    out = capsys.readouterr().out
    assert (
        f"checkpoint_best.pth of {FULL} is left out, because not every fold has validation_best of this checkpoint (fold 1: no val" in out
    )


def test_checkpoints_are_compared_by_dice_where_one_of_them_has_no_classes(joint, capsys) -> None:
    """The final one, whose classes are left out, segments better."""
    model = joint.results / FULL
    tasks = classification_tasks(load_json(joint.raw / "dataset.json"))
    validate_further_checkpoint(model, "checkpoint_best_joint.pth", tasks)
    for file in model.rglob("validation_best_joint/*.nii.gz"):
        sitk.WriteImage(0 * sitk.ReadImage(str(file)), str(file))
    for file in (model / "fold_1" / "validation").glob("classification*"):
        file.unlink()
    find_best_configuration_entry(["1", "-c", "3d_fullres", "-f", "0", "1", "2", "-np", "1"])
    found = information(joint)
    assert found["checkpoints"][FULL]["checkpoint_final.pth"]["case_scores_of_heads"] == {}
    assert "checkpoint" not in found["best_model_or_ensemble"]["selected_model_or_models"][0]
    out = capsys.readouterr().out
    assert "Not every checkpoint has a case score, so only the Dice is compared." in out
    assert "Of these 2 checkpoints those with the highest Dice are taken; being the best of 2" in out


@pytest.mark.parametrize(
    ("final", "further", "chosen"),
    [
        ((0.8, 0.2), (0.7, 0.9), "further"),
        ((0.6, None), (0.7, np.nan), "further"),
        ((0.6, np.nan), (0.7, np.nan), "further"),  # no case score at all: the Dice
        ((0.8, np.nan), (0.7, 1.0), "final"),
        ((0.8, 0.1), (0.7, None), "final"),
        ((0.7, 0.5), (0.7, 0.5), "final"),
    ],
)
def test_case_scores_count_only_if_every_checkpoint_has_one(final, further, chosen, tmp_path) -> None:
    candidates = [
        Candidate(name=name, folder=tmp_path, members=(), dice=dice, classes=None if score is None else {"case_score": score})
        for name, (dice, score) in {"final": final, "further": further}.items()
    ]
    assert _best_checkpoint(candidates).name == chosen


def test_a_validation_counts_only_beside_the_checkpoint_it_is_of(joint, capsys) -> None:
    """A copy of a user's, and what an older training has left."""
    model = joint.results / FULL
    tasks = classification_tasks(load_json(joint.raw / "dataset.json"))
    for checkpoint in ("checkpoint_old.pth", "checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_best_joint.pth"):
        validate_further_checkpoint(model, checkpoint, tasks)
    for fold in range(3):
        (model / f"fold_{fold}" / "checkpoint_old.pth").unlink()
    summary = model / "fold_1" / "validation_best" / "summary.json"
    later = summary.stat().st_mtime + 10
    os.utime(model / "fold_1" / "checkpoint_best.pth", (later, later))
    find_best_configuration_entry(["1", "-c", "3d_fullres", "-f", "0", "1", "2", "-np", "1"])
    assert validated_checkpoints(model, (0, 1, 2))[0] == ["checkpoint_best_joint.pth"]
    assert list(information(joint)["checkpoints"][FULL]) == ["checkpoint_best_joint.pth", "checkpoint_final.pth"]
    out = capsys.readouterr().out
    assert "(fold 0: no checkpoint_old.pth; fold 1: no checkpoint_old.pth; fold 2: no checkpoint_old.pth)" in out
    assert "(fold 1: checkpoint_best.pth is newer than its validation; run nnUNetv2_train ... --val -val_chk checkpoint_best.pth" in out


def test_a_cascade_begins_with_the_checkpoint_it_was_trained_on(nnunet_folders) -> None:
    """Both members are predicted with a chosen checkpoint, but the cascade was trained on what the final one of its first stage predicted."""
    dataset = write_cross_validation(
        nnunet_folders,
        models={LOWRES: 1.6, CASCADE: 1.4},
        classification={"subtype": SUBTYPE},
        certainty={LOWRES: {"joint": 0.1}},
        num_cases=9,
    )
    tasks = classification_tasks(load_json(dataset.raw / "dataset.json"))
    validate_further_checkpoint(dataset.results / LOWRES, "checkpoint_best_joint.pth", tasks)
    find_best_configuration_entry(["1", "-c", "3d_lowres", "3d_cascade_fullres", "-f", "0", "1", "2", "-np", "1"])
    assert len(information(dataset)["best_model_or_ensemble"]["selected_model_or_models"]) == 2
    predict = [words for words in commands(dataset) if words[0] == "nnUNetv2_predict"]
    steps = [(option(words, "-c"), option(words, "-o"), option(words, "-chk")) for words in predict]
    assert steps == [
        ("3d_lowres", "OUTPUT_FOLDER_MODEL_1", "checkpoint_best_joint.pth"),
        ("3d_lowres", "OUTPUT_FOLDER_MODEL_2_PREV_STAGE", None),
        ("3d_cascade_fullres", "OUTPUT_FOLDER_MODEL_2", None),
    ]


def test_a_dice_that_is_no_number_never_wins(nnunet_folders) -> None:
    """Label 3 occurs nowhere; one model predicts some of it, so that only that one has a Dice for it, 0."""
    labels = {"background": 0, "organ": 1, "lesion": 2, "absent": 3}
    dataset = write_cross_validation(nnunet_folders, models={TWO: 0.0, FULL: 0.0}, labels=labels, blobs=(), num_cases=3)
    file = dataset.results / TWO / "fold_0" / "validation" / "case_000.nii.gz"
    image = sitk.ReadImage(str(file))
    image[0, 0, 0] = 3
    sitk.WriteImage(image, str(file))
    found = find_best_configuration(
        1,
        dumb_trainer_config_plans_to_trained_models_dict(["nnUNetTrainer"], ["2d", "3d_fullres"], ["nnUNetPlans"]),
        False,
        1,
        folds=(0, 1, 2),
    )
    assert found["all_results"] == {TWO: pytest.approx(2 / 3, abs=1e-3), FULL: 1.0}
    assert found["best_model_or_ensemble"]["selected_model_or_models"][0]["configuration"] == "3d_fullres"


def test_without_any_foreground_there_is_nothing_to_choose_by(nnunet_folders) -> None:
    dataset = write_cross_validation(nnunet_folders, models={TWO: 0.0}, blobs=(), num_cases=3)
    files = [*dataset.references.glob("*"), *(dataset.raw / "labelsTr").glob("*"), *dataset.results.rglob("validation/*.nii.gz")]
    for file in files:
        sitk.WriteImage(0 * sitk.ReadImage(str(file)), str(file))
    with pytest.raises(RuntimeError, match="No model has a Dice"):
        find_best_configuration(1, [default_trained_models[0]], num_processes=1, folds=(0, 1, 2))


def test_models_that_are_not_there_are_named_all_at_once(nnunet_folders, capsys) -> None:
    write_cross_validation(nnunet_folders, models={FULL: 1.0}, num_cases=3)
    with pytest.raises(RuntimeError, match=f"3 of the models.*{TWO}.*{LOWRES}.*{CASCADE}.*-c"):
        filter_available_models(default_trained_models, 1)
    unknown = {"plans": "nnUNetPlans", "configuration": "4d", "trainer": "nnUNetTrainer"}
    assert filter_available_models([unknown, default_trained_models[1]], 1) == [default_trained_models[1]]
    assert "4d in nnUNetPlans" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="no configuration 4d in nnUNetPlans"):
        find_best_configuration(1, [unknown], num_processes=1, folds=(0,), strict=True)
    with pytest.raises(RuntimeError, match="no model .* to choose from"):
        find_best_configuration(1, [unknown], num_processes=1, folds=(0,))
    with pytest.raises(FileNotFoundError, match="nnUNetOtherPlans of Dataset001_Tiny were not found"):
        filter_available_models([{**unknown, "plans": "nnUNetOtherPlans"}], 1)


def test_without_overwriting_an_earlier_result_is_taken(nnunet_folders) -> None:
    dataset = write_cross_validation(nnunet_folders, num_cases=3)
    find_best_configuration_entry(BOTH)
    before = information(dataset)
    for file in dataset.results.rglob("fold_*/validation/case_*"):
        file.write_bytes(b"")
    find_best_configuration_entry([*BOTH, "--no_overwrite"])
    assert information(dataset) == before
    with pytest.raises(SystemExit):
        find_best_configuration_entry(BOTH)


def test_fold_all_can_be_chosen(nnunet_folders) -> None:
    dataset = write_cross_validation(nnunet_folders, models={FULL: 1.0}, num_cases=2, num_folds=1)
    (dataset.results / FULL / "fold_0").rename(dataset.results / FULL / "fold_all")
    find_best_configuration_entry(["1", "-c", "3d_fullres", "-f", "all", "-np", "1"])
    assert information(dataset)["folds"] == ["all"]
    assert build_predict_parser().parse_args(commands(dataset)[0][1:]).f == ["all"]


def test_commands_are_safe_to_paste(nnunet_folders) -> None:
    write_cross_validation(nnunet_folders, models={FULL: 1.0}, num_cases=3)
    command = generate_inference_command(1, "3d_fullres", input_folder="my images", folds=(0, "all"), save_npz=True)
    words = shlex.split(command)
    assert option(words, "-i") == "my images"
    assert build_predict_parser().parse_args(words[1:]).f == [0, "all"]
    given = generate_inference_command(1, "3d_cascade_fullres", folder_with_segs_from_prev_stage="PREV")
    assert given.count("\n") == 0
    assert option(shlex.split(given), "-prev_stage_predictions") == "PREV"


def test_information_without_classes_can_be_printed_anew(nnunet_folders, tmp_path, capsys) -> None:
    dataset = write_cross_validation(nnunet_folders, models={FULL: 1.0}, num_cases=3)
    find_best_configuration_entry(["1", "-c", "3d_fullres", "-f", "0", "1", "2", "-np", "1"])
    capsys.readouterr()
    print_inference_instructions(information(dataset), tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_text() == (dataset.results / "inference_instructions.txt").read_text() == capsys.readouterr().out
    json.dumps(information(dataset))


def test_worker_processes_find_the_same(nnunet_folders, tmp_path, monkeypatch) -> None:
    labels = {"background": 0, "organ": 1}
    dataset = write_cross_validation(nnunet_folders, labels=labels, num_cases=2, num_folds=1, blobs=(1,))
    models = [dataset.results / TWO, dataset.results / FULL]
    descriptions = [load_json(models[0] / f"{name}.json") for name in ("plans", "dataset")]
    monkeypatch.setattr(evaluate_predictions, "SMALL_JOB_BYTES", 0)
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        ensemble_crossvalidations(models, folder, (0,), processes)
        _, arguments = determine_postprocessing(folder, dataset.references, *descriptions, processes)
        images = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in sorted(folder.rglob("*.nii.gz"))]
        found.append((arguments, np.stack(images)))
    assert found[0][0] == found[1][0] == [{"labels_or_regions": [1]}]
    np.testing.assert_array_equal(found[0][1], found[1][1])

"""Which configuration, or pair of them, segments best in cross-validation, and the commands to predict with it.

The Dice decides, as in nnU-Net. Of models with classes the class scores stand beside it, and on their tables is chosen which heads predict
the classes, how tiles vote, and with the Dice which checkpoint, where several were validated.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.ensembling.ensemble import ensemble_crossvalidations
from nnunetv2.evaluation.accumulate_cv_results import (
    FINAL_CHECKPOINT,
    accumulate_cv_results,
    default_output_folder,
    model_description,
    score_segmentations,
    validated_checkpoint,
    validated_checkpoints,
)
from nnunetv2.evaluation.evaluate_predictions import foreground_dice, load_summary_json
from nnunetv2.evaluation.validation_tables import CLASS_SUMMARY_FILE, DEFAULT_AGGREGATION, heads_and_aggregation, validation_folder_name
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.postprocessing.remove_connected_components import POSTPROCESSING_PKL, determine_postprocessing
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.file_io import atomic_path, load_json, save_json
from nnunetv2.utilities.file_path_utilities import (
    convert_trainer_plans_config_to_identifier,
    get_ensemble_name,
    get_output_folder,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

default_trained_models = tuple(
    {"plans": "nnUNetPlans", "configuration": configuration, "trainer": "nnUNetTrainer"}
    for configuration in ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
)
INFORMATION_FILE, INSTRUCTIONS_FILE = "inference_information.json", "inference_instructions.txt"

Model = Mapping[str, str]  # plans, configuration, trainer


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trained model with what its cross-validation says about how to predict with it."""

    model: Model
    folder: Path
    checkpoint: str  # that predicted the validation
    validation_name: str  # folder of each fold that holds it
    class_scores: Mapping[str, float]  # case score by table, see heads_and_aggregation; empty without classes
    class_table: str | None  # the best of them
    checkpoint_scores: Mapping[str, Mapping[str, Any]]  # by checkpoint the Dice and the case scores, if there is a choice; else empty

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model or an ensemble with its scores."""

    name: str
    folder: Path  # of its pooled predictions
    members: tuple[Member, ...]
    dice: float
    classes: Mapping[str, Any] | None  # case score and scores by task; None without classes


def filter_available_models(model_dict: Sequence[Model], dataset_name_or_id: str | int, *, strict: bool = False) -> list[Model]:
    """The models whose configuration exists in their plans.

    Args:
        model_dict: ``{"plans", "configuration", "trainer"}`` each.
        dataset_name_or_id: The dataset.
        strict: Raise RuntimeError for a configuration that its plans do not have, rather than leave it out.

    Raises:
        RuntimeError: If models were not trained; names all of them and where they should be.
    """
    available, absent, untrained = [], [], []
    for model in model_dict:
        plans = _plans(dataset_name_or_id, model["plans"], model["trainer"], model["configuration"])
        if model["configuration"] not in plans.available_configurations:
            absent.append(f"{model['configuration']} in {model['plans']}")
            continue
        folder = get_output_folder(dataset_name_or_id, model["trainer"], model["plans"], model["configuration"])
        (available if os.path.isdir(folder) else untrained).append(model)
    absent = list(dict.fromkeys(absent))
    if absent and strict:
        raise RuntimeError(f"There is no configuration {', '.join(absent)}. Choose others with -c or other plans with -p.")
    if absent:
        print(f"Left out, because the plans do not have them: {', '.join(absent)}")
    if untrained:
        folders = [get_output_folder(dataset_name_or_id, m["trainer"], m["plans"], m["configuration"]) for m in untrained]
        raise RuntimeError(
            f"{len(untrained)} of the models to choose from were not trained, there is no folder {', '.join(folders)}. Train them (with --npz "
            "to consider ensembles), or choose configurations with -c, trainers with -tr and plans with -p."
        )
    return available


def _plans(dataset_name_or_id: str | int, plans_identifier: str, trainer: str, configuration: str) -> PlansManager:
    """Plans from the preprocessed dataset or from the folder of a model."""
    name = maybe_convert_to_dataset_name(dataset_name_or_id)
    candidates = [nnUNet_preprocessed / name / f"{plans_identifier}.json"] if nnUNet_preprocessed.is_set() else []
    if nnUNet_results.is_set():
        candidates.append(Path(get_output_folder(name, trainer, plans_identifier, configuration)) / "plans.json")
    for file in candidates:
        if file.is_file():
            return PlansManager(str(file))
    raise FileNotFoundError(
        f"The plans {plans_identifier} of {name} were not found. Looked for {' and '.join(map(str, candidates)) or 'nothing'}; set "
        "nnUNet_preprocessed and nnUNet_results, and check -p."
    )


def find_best_configuration(
    dataset_name_or_id: str | int,
    allowed_trained_models: Sequence[Model] = default_trained_models,
    allow_ensembling: bool = True,
    num_processes: int = default_num_processes,
    overwrite: bool = True,
    folds: Sequence[int | str] = (0, 1, 2, 3, 4),
    strict: bool = False,
) -> dict[str, Any]:
    """Score all models and pairs of them on their validation cases, and write down how to predict with the best.

    Args:
        dataset_name_or_id: The dataset.
        allowed_trained_models: What to choose from, ``{"plans", "configuration", "trainer"}`` each.
        allow_ensembling: Also consider the mean of every two models, which needs their probabilities (``--npz``).
        num_processes: Worker processes.
        overwrite: Pool and average anew what an earlier call has left.
        folds: Numbers, or ``all``.
        strict: An unknown configuration is an error.

    Returns:
        The content of ``inference_information.json``.

    Raises:
        RuntimeError: If a model was not trained, a fold not validated, or nothing has a Dice.
    """
    dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
    models = filter_available_models(allowed_trained_models, dataset_name, strict=strict)
    if not models:
        raise RuntimeError(f"There is no model of {dataset_name} to choose from. Choose configurations with -c that its plans have.")
    references = nnUNet_preprocessed / dataset_name / "gt_segmentations"
    if not references.is_dir():
        raise FileNotFoundError(
            f"There is no folder {references} with the annotations. Preprocess the dataset, or set nnUNet_preprocessed."
        )

    candidates = [_scored_model(dataset_name, model, folds, num_processes, overwrite) for model in models]
    if allow_ensembling:
        pairs = combinations([candidate.members[0] for candidate in candidates], 2)
        candidates += [_scored_pair(dataset_name, pair, folds, references, num_processes, overwrite) for pair in pairs]
    best = _best(candidates)
    dataset_json, plans_manager = model_description(best.members[0].folder)
    determine_postprocessing(best.folder, references, plans_manager.plans, dataset_json, num_processes, keep_postprocessed_files=True)
    information = _information(dataset_name, models, candidates, best, folds, allow_ensembling)
    results = nnUNet_results / dataset_name
    save_json(information, results / INFORMATION_FILE, sort_keys=True)
    print_inference_instructions(information, results / INSTRUCTIONS_FILE)
    return information


def _scored_model(dataset_name: str, model: Model, folds: Sequence[int | str], num_processes: int, overwrite: bool) -> Candidate:
    """Pool the folds of a model for every checkpoint that all of them validated, and take the best checkpoint."""
    folder = Path(get_output_folder(dataset_name, model["trainer"], model["plans"], model["configuration"]))
    further, left_out = validated_checkpoints(folder, folds)
    for reason in left_out:
        print(f"WARNING: {reason}")
    candidates = [
        _scored_checkpoint(folder, model, checkpoint, folds, num_processes, overwrite) for checkpoint in (FINAL_CHECKPOINT, *further)
    ]
    best = _best_checkpoint(candidates)
    if len(candidates) == 1:
        return best
    scores = {}
    for candidate in candidates:
        (member,) = candidate.members
        scores[member.checkpoint] = {"dice": candidate.dice, "case_scores_of_heads": dict(member.class_scores)}
    return replace(best, members=(replace(best.members[0], checkpoint_scores=scores),))


def _best_checkpoint(candidates: Sequence[Candidate]) -> Candidate:
    """The checkpoint of a model with the highest mean of Dice and case score, by Dice alone unless all have a case score.

    The first of equals: the final one.
    """
    by_classes = all(c.classes is not None and np.isfinite(c.classes["case_score"]) for c in candidates)
    return max(candidates, key=lambda c: _rank((c.dice + c.classes["case_score"]) / 2 if by_classes else c.dice))


def _scored_checkpoint(
    folder: Path, model: Model, checkpoint: str, folds: Sequence[int | str], num_processes: int, overwrite: bool
) -> Candidate:
    """Pool the folds of a model's checkpoint and read its scores."""
    pooled = Path(default_output_folder(folder, folds, checkpoint))
    accumulate_cv_results(folder, pooled, folds, num_processes, overwrite, checkpoint=checkpoint)
    summaries = _class_summaries(pooled)
    scores = {name: summary["case_score"] for name, summary in summaries.items()}
    # The first of equals: the set of heads that nnUNetv2_predict takes by itself.
    table = max(scores, key=lambda name: _rank(scores[name])) if scores else None
    member = Member(
        model=model,
        folder=folder,
        # The final checkpoint's folder may be that of another one, after --val_best.
        checkpoint=validated_checkpoint(folder, folds) if checkpoint == FINAL_CHECKPOINT else checkpoint,
        validation_name=validation_folder_name(checkpoint),
        class_scores=scores,
        class_table=table,
        checkpoint_scores={},
    )
    return Candidate(
        name=folder.name,
        folder=pooled,
        members=(member,),
        dice=foreground_dice(load_summary_json(pooled / "summary.json")),
        classes=None if table is None else _score_extract(summaries[table]),
    )


def _rank(score: float) -> float:
    """A score to compare by; what is no number is the lowest."""
    return -np.inf if np.isnan(score) else score


def _scored_pair(
    dataset_name: str, pair: Sequence[Member], folds: Sequence[int | str], references: Path, num_processes: int, overwrite: bool
) -> Candidate:
    """Average two models and score the mean."""
    name = get_ensemble_name(pair[0].folder, pair[1].folder, folds)
    output = nnUNet_results / dataset_name / "ensembles" / name
    models = [member.folder for member in pair]
    ensemble_crossvalidations(
        models,
        output,
        folds,
        num_processes,
        overwrite,
        class_heads=[member.class_table for member in pair],
        validation_names=[member.validation_name for member in pair],
    )
    dataset_json, plans_manager = model_description(models[0])
    identifiers = [file.name.removesuffix(dataset_json["file_ending"]) for file in output.glob(f"*{dataset_json['file_ending']}")]
    score_segmentations(output, references, identifiers, dataset_json, plans_manager, num_processes, keep_existing=not overwrite)
    summaries = _class_summaries(output)
    return Candidate(
        name=name,
        folder=output,
        members=tuple(pair),
        dice=foreground_dice(load_summary_json(output / "summary.json")),
        classes=_score_extract(next(iter(summaries.values()))) if summaries else None,
    )


def _class_summaries(folder: Path) -> dict[str, Any]:
    """The scores of classes in a folder by table; empty where there are none."""
    file = folder / CLASS_SUMMARY_FILE
    return {name: summary for name, summary in load_json(file).items() if summary} if file.is_file() else {}


def _score_extract(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What of a summary of classes goes beside the Dice."""
    tasks = {name: {key: entry[key] for key in ("n", "unknown", "scores")} for name, entry in summary["tasks"].items()}
    return {"case_score": summary["case_score"], "tasks": tasks}


def _best(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the highest Dice, the first of equals; one without a Dice never wins."""
    comparable = [candidate for candidate in candidates if not np.isnan(candidate.dice)]
    if not comparable:
        raise RuntimeError("No model has a Dice: no validation case has any foreground, in its annotation or predicted.")
    return max(comparable, key=lambda candidate: candidate.dice)


def _information(
    dataset_name: str,
    models: Sequence[Model],
    candidates: Sequence[Candidate],
    best: Candidate,
    folds: Sequence[int | str],
    allow_ensembling: bool,
) -> dict[str, Any]:
    """The content of ``inference_information.json``: nnU-Net's keys, and ours where there are classes or another checkpoint."""
    information = {
        "folds": list(folds),
        "dataset_name_or_id": dataset_name,
        "considered_models": [dict(model) for model in models],
        "ensembling_allowed": allow_ensembling,
        "all_results": {candidate.name: candidate.dice for candidate in candidates},
        "best_model_or_ensemble": {
            "result_on_crossval_pre_pp": best.dice,
            "result_on_crossval_post_pp": foreground_dice(load_summary_json(best.folder / "postprocessed" / "summary.json")),
            "postprocessing_file": str(best.folder / POSTPROCESSING_PKL),
            "some_plans_file": str(best.folder / "plans.json"),
            "selected_model_or_models": [_selected(member, best) for member in best.members],
        },
    }
    scored = {candidate.name: candidate.classes for candidate in candidates if candidate.classes is not None}
    members = [candidate.members[0] for candidate in candidates if len(candidate.members) == 1]
    compared = {member.name: dict(member.checkpoint_scores) for member in members if member.checkpoint_scores}
    if compared:
        information["checkpoints"] = compared
    if scored:
        information["classification"] = {
            "all_results": scored,
            "case_scores_of_heads": {member.name: dict(member.class_scores) for member in members if member.class_scores},
        }
    return information


def _selected(member: Member, best: Candidate) -> dict[str, Any]:
    """A model of the winner."""
    entry = {
        "configuration": member.model["configuration"],
        "trainer": member.model["trainer"],
        "plans_identifier": member.model["plans"],
    }
    if member.checkpoint != FINAL_CHECKPOINT:
        entry["checkpoint"] = member.checkpoint
    if best.classes is not None and member.class_table is not None:
        heads, aggregation = heads_and_aggregation(member.class_table)
        entry |= {"classification_heads": heads, "classification_aggregation": aggregation}
    return entry


# instructions


def generate_inference_command(
    dataset_name_or_id: int | str,
    configuration_name: str,
    plans_identifier: str = "nnUNetPlans",
    trainer_name: str = "nnUNetTrainer",
    folds: Sequence[int | str] = (0, 1, 2, 3, 4),
    folder_with_segs_from_prev_stage: str | None = None,
    input_folder: str = "INPUT_FOLDER",
    output_folder: str = "OUTPUT_FOLDER",
    save_npz: bool = False,
    *,
    checkpoint: str = FINAL_CHECKPOINT,
    classification_heads: str | None = None,
    classification_aggregation: str | None = None,
) -> str:
    """The command that predicts with a model; for a cascade without given predictions of the previous stage, first the one for these.

    Args:
        dataset_name_or_id: Of the model.
        configuration_name: Of the model.
        plans_identifier: Of the model.
        trainer_name: Of the model.
        folds: To average.
        folder_with_segs_from_prev_stage: Of a cascade; None: predicted by a command before.
        input_folder: Images.
        output_folder: Predictions.
        save_npz: Keep probabilities, to average them with others.
        checkpoint: Of every fold.
        classification_heads: Also predict classes, with these heads.
        classification_aggregation: How tiles vote; None: as usual.

    Returns:
        One or several lines.
    """
    lines = []
    model = (dataset_name_or_id, plans_identifier, trainer_name)
    if folder_with_segs_from_prev_stage is None:
        previous = _plans(dataset_name_or_id, plans_identifier, trainer_name, configuration_name).get_configuration(configuration_name)
        if previous.previous_stage_name is not None:
            folder_with_segs_from_prev_stage = f"{output_folder}_PREV_STAGE"
            lines.append(
                generate_inference_command(
                    dataset_name_or_id,
                    previous.previous_stage_name,
                    plans_identifier,
                    trainer_name,
                    folds,
                    None,
                    input_folder,
                    folder_with_segs_from_prev_stage,
                    checkpoint=_checkpoint_of_stage(
                        dataset_name_or_id, trainer_name, plans_identifier, previous.previous_stage_name, folds
                    ),
                )
            )
    words = ["nnUNetv2_predict", "-d", model[0], "-i", input_folder, "-o", output_folder, "-f", *folds]
    words += ["-tr", trainer_name, "-c", configuration_name, "-p", plans_identifier]
    if folder_with_segs_from_prev_stage is not None:
        words += ["-prev_stage_predictions", folder_with_segs_from_prev_stage]
    if save_npz:
        words.append("--save_probabilities")
    if checkpoint != FINAL_CHECKPOINT:
        words += ["-chk", checkpoint]
    if classification_heads is not None:
        words += ["--save_cls", "--cls_heads", classification_heads]
        if classification_aggregation not in (None, DEFAULT_AGGREGATION):
            words += ["--cls_aggregation", classification_aggregation]
    return "\n".join([*lines, _command(words)])


def _checkpoint_of_stage(
    dataset_name_or_id: int | str, trainer: str, plans_identifier: str, configuration: str, folds: Sequence[int | str]
) -> str:
    """The checkpoint of a cascade's first stage whose predictions the next stage was trained on."""
    if not nnUNet_results.is_set():
        return FINAL_CHECKPOINT
    return validated_checkpoint(get_output_folder(dataset_name_or_id, trainer, plans_identifier, configuration), folds)


def _command(words: Sequence[Any]) -> str:
    """A command line that a shell takes apart into the same words."""
    return shlex.join(str(word) for word in words)


def print_inference_instructions(inference_info_dict: Mapping[str, Any], instructions_file: str | os.PathLike | None = None) -> None:
    """Say how to predict with the best model, on the screen and in a file.

    Args:
        inference_info_dict: Content of ``inference_information.json``, also of nnU-Net 2.8.1.
        instructions_file: ``inference_instructions.txt``; None: none.
    """
    text = "\n".join([*_result_lines(inference_info_dict), *_command_lines(inference_info_dict)])
    print(text)
    if instructions_file is not None:
        with atomic_path(instructions_file) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def _result_lines(information: Mapping[str, Any]) -> list[str]:
    """The scores of all candidates."""
    best, results = information["best_model_or_ensemble"], information["all_results"]
    classes = information.get("classification", {})
    scored = classes.get("all_results", {})
    lines = ["", f"Cross-validation, folds {' '.join(map(str, information['folds']))}: mean foreground Dice{', classes' if scored else ''}"]
    for name, dice in results.items():
        lines.append(f"  {dice:.4f}{_class_text(scored.get(name))}  {name}")
    winner = _winner(information)
    pre, post = best["result_on_crossval_pre_pp"], best["result_on_crossval_post_pp"]
    favoured = f" It is the best of {len(results)}, which makes its score a little too good." if len(results) > 1 else ""
    lines.append(f"Best: {winner}, Dice {pre:.4f}, after postprocessing {post:.4f}.{favoured}")
    if scored:
        lines += [
            "",
            "The Dice alone has chosen the model. Case score: mean over tasks of macro-F1, macro average precision or quadratic kappa.",
        ]
        favourite = max(scored, key=lambda name: _rank(scored[name]["case_score"]))
        if winner not in scored or _rank(scored[favourite]["case_score"]) > _rank(scored[winner]["case_score"]):
            lines.append(f"By the case score {favourite} would be the best ({scored[favourite]['case_score']:.4f}).")
        for name, scores in classes.get("case_scores_of_heads", {}).items():
            lines.append(f"  heads of {name}: " + ", ".join(f"{heads} {score:.4f}" for heads, score in scores.items()))
        tried = max((len(scores) for scores in classes.get("case_scores_of_heads", {}).values()), default=0)
        if tried > 1 and "checkpoints" not in information:
            lines.append(f"The heads with the highest case score are taken; being the best of {tried}, their score is a little too good.")
    return lines + _checkpoint_lines(information)


def _checkpoint_lines(information: Mapping[str, Any]) -> list[str]:
    """The scores of each checkpoint, where a model has several to choose from."""
    lines = []
    for name, checkpoints in information.get("checkpoints", {}).items():
        lines += ["", f"Checkpoints of {name}:"]
        for checkpoint, scores in checkpoints.items():
            heads = "".join(f", {table} heads {score:.4f}" for table, score in scores["case_scores_of_heads"].items())
            lines.append(f"  {checkpoint}: Dice {scores['dice']:.4f}{heads}")
        has_case_score = [bool(np.isfinite(list(scores["case_scores_of_heads"].values())).any()) for scores in checkpoints.values()]
        by_classes = all(has_case_score)
        tried = sum(len(scores["case_scores_of_heads"]) if by_classes else 1 for scores in checkpoints.values())
        by = "the highest mean of Dice and case score" if by_classes else "the highest Dice"
        what = "checkpoints and heads" if by_classes else "checkpoints"
        if any(has_case_score) and not by_classes:
            lines.append("Not every checkpoint has a case score, so only the Dice is compared.")
        lines.append(f"Of these {tried} {what} those with {by} are taken; being the best of {tried}, their scores are a little too good.")
    return lines


def _winner(information: Mapping[str, Any]) -> str:
    """Name of the best model or ensemble."""
    selected = information["best_model_or_ensemble"]["selected_model_or_models"]
    names = [convert_trainer_plans_config_to_identifier(*_key(entry)) for entry in selected]
    return names[0] if len(names) == 1 else get_ensemble_name(*names, information["folds"])


def _class_text(classes: Mapping[str, Any] | None) -> str:
    """The case score and each task's scores in a few words."""
    if classes is None:
        return ""
    by_task = []
    for name, entry in classes["tasks"].items():
        scores = entry["scores"]
        shown = next(key for key in ("quadratic_kappa", "macro_average_precision", "macro_f1") if key in scores)
        by_task.append(f"{name} {shown} {scores[shown]:.4f} (n {entry['n']})")
    return f"  case score {classes['case_score']:.4f}: {', '.join(by_task)} "


def _command_lines(information: Mapping[str, Any]) -> list[str]:
    """The commands that predict with the winner."""
    best, folds = information["best_model_or_ensemble"], information["folds"]
    selected = best["selected_model_or_models"]
    is_ensemble = len(selected) > 1
    outputs = [f"OUTPUT_FOLDER_MODEL_{number}" for number in range(1, len(selected) + 1)] if is_ensemble else ["OUTPUT_FOLDER"]
    by_model = {_key(entry): output for entry, output in zip(selected, outputs, strict=True)}
    # A cascade was trained on the predictions of its first stage's validation, which may be of another checkpoint than the one chosen here.
    dataset_name = information["dataset_name_or_id"]
    is_as_trained_on = {
        _key(entry): entry.get("checkpoint", FINAL_CHECKPOINT) == _checkpoint_of_stage(dataset_name, *_key(entry), folds)
        for entry in selected
    }
    without, with_previous_stage = [], []
    for entry, output in zip(selected, outputs, strict=True):
        previous = _previous_stage(information["dataset_name_or_id"], entry)
        previous_key = (entry["trainer"], entry["plans_identifier"], previous)
        command = generate_inference_command(
            information["dataset_name_or_id"],
            entry["configuration"],
            entry["plans_identifier"],
            entry["trainer"],
            folds,
            by_model.get(previous_key) if is_as_trained_on.get(previous_key) else None,
            output_folder=output,
            save_npz=is_ensemble,
            checkpoint=entry.get("checkpoint", FINAL_CHECKPOINT),
            classification_heads=entry.get("classification_heads"),
            classification_aggregation=entry.get("classification_aggregation"),
        )
        (without if previous is None else with_previous_stage).append(command)
    # A cascade may take the predictions of another member, which have to be there first.
    lines = ["", "Predict:", *without, *with_previous_stage]
    if is_ensemble:
        lines += ["", "Average:", _command(["nnUNetv2_ensemble", "-i", *outputs, "-o", "OUTPUT_FOLDER", "-np", default_num_processes])]
    postprocess = ["nnUNetv2_apply_postprocessing", "-i", "OUTPUT_FOLDER", "-o", "OUTPUT_FOLDER_PP"]
    postprocess += ["-pp_pkl_file", best["postprocessing_file"], "-np", default_num_processes, "-plans_json", best["some_plans_file"]]
    return [*lines, "", "Postprocess:", _command(postprocess)]


def _key(entry: Mapping[str, str]) -> tuple[str, str, str]:
    return entry["trainer"], entry["plans_identifier"], entry["configuration"]


def _previous_stage(dataset_name_or_id: str | int, entry: Mapping[str, str]) -> str | None:
    """The configuration that a selected model continues."""
    plans = _plans(dataset_name_or_id, entry["plans_identifier"], entry["trainer"], entry["configuration"])
    return plans.get_configuration(entry["configuration"]).previous_stage_name


def dumb_trainer_config_plans_to_trained_models_dict(
    trainers: Sequence[str], configs: Sequence[str], plans: Sequence[str]
) -> list[dict[str, str]]:
    """Every combination of trainers, configurations and plans."""
    return [
        {"plans": plans_name, "configuration": configuration, "trainer": trainer}
        for trainer in trainers
        for configuration in configs
        for plans_name in plans
    ]


def find_best_configuration_entry_point(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_find_best_configuration``; lives in ``nnunetv2.cli.find_best_configuration``."""
    from nnunetv2.cli.find_best_configuration import find_best_configuration_entry

    find_best_configuration_entry(argv)


def accumulate_crossval_results_entry_point(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_accumulate_crossval_results``; lives in ``nnunetv2.cli.find_best_configuration``."""
    from nnunetv2.cli.find_best_configuration import accumulate_crossval_results_entry

    accumulate_crossval_results_entry(argv)

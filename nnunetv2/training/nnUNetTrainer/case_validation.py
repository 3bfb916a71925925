"""The validation at the end of a training: whole cases, predicted by the path of the predictor, scored like any prediction."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from os.path import join
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.classification_metrics import classification_summary
from nnunetv2.evaluation.validation_tables import DEFAULT_AGGREGATION, OTHER_AGGREGATIONS, VALIDATION, heads_and_aggregation, table_name
from nnunetv2.inference.case_classification import CaseClassification
from nnunetv2.inference.export_prediction import export_prediction_from_logits, resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.trained_model import JOINT_HEADS, REFITTED_HEADS
from nnunetv2.network_architecture.joint_network import JointNetwork
from nnunetv2.scheduling import CaseErrors, CaseFailure
from nnunetv2.training.distributed import (
    is_distributed,
    number_of_processes,
    of_all_processes,
    of_first_process,
    portable_error,
    process_rank,
)
from nnunetv2.utilities.compilation import unwrapped_network
from nnunetv2.utilities.file_io import save_json
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.label_handling.classification_table import CLASSIFICATION_FILE, write_classification_csv
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

QUEUED_EXPORTS = 2  # cases that may wait for an export thread, each with its logits in memory
REFIT_SUFFIX = "/refit"  # tells the heads of a task apart in one network; no task's name holds a slash


def validate_cases(trainer: nnUNetTrainer, save_probabilities: bool = False) -> dict:
    """Predict the validation cases of a trainer into its folder ``validation_name`` and score them.

    Writes the segmentations, ``summary.json``, and with heads ``classification.csv`` and ``classification_summary.json``; for a first
    stage of a cascade also the segmentations that the next stage is trained with.

    Args:
        trainer: Initialized, with the weights to validate.
        save_probabilities: Also write probabilities, for ensembles.

    Several processes share the cases; the first one scores them all.

    Returns:
        The content of ``summary.json``.

    Raises:
        CaseErrors: After all others are predicted, if some cases failed; nothing is scored then.
    """
    if trainer.fold == "all":
        trainer.print_to_log_file("WARNING: fold all validates on the training cases. These scores say nothing about new cases.")
    folder = join(trainer.output_folder, trainer.validation_name)
    os.makedirs(folder, exist_ok=True)
    predictor = _validating_predictor(trainer)
    _, dataset = trainer.get_tr_and_val_datasets()
    class_rows: dict[str, dict[str, dict[str, np.ndarray]]] = {}  # set of heads -> case -> task
    with segmentation_at_full_resolution(trainer), _Exports(trainer.device) as exports:
        for identifier in dataset.identifiers[process_rank() :: number_of_processes()]:
            trainer.print_to_log_file(f"predicting {identifier}")
            try:
                logits, properties, by_set = _predict(trainer, predictor, dataset, identifier)
            except Exception as error:
                exports.failures.append(CaseFailure(identifier, error, traceback.format_exc()))
                continue
            for name, row in by_set.items():
                class_rows.setdefault(name, {})[identifier] = row
            classification = next(iter(by_set.values()), {})
            exports.submit(
                identifier,
                _export,
                logits,
                properties,
                trainer.configuration_manager,
                trainer.plans_manager,
                trainer.dataset_json,
                join(folder, identifier),
                save_probabilities,
                _next_stages(trainer, identifier, properties),
                classification,
            )
    failures = [failure for of_process in of_all_processes(_portable(exports.failures)) for failure in of_process]
    if failures:
        failures = [CaseFailure(*failure) for failure in failures]
        raise CaseErrors(failures, len(dataset.identifiers), "validation") from failures[0].error
    class_rows = _merged(of_all_processes(class_rows), dataset.identifiers)
    return of_first_process(_score(trainer, folder, class_rows) if process_rank() == 0 else None)


def _portable(failures: Sequence[CaseFailure]) -> list[tuple[str, Exception, str]]:
    """Failures as they can be sent to other processes."""
    sent = portable_error if is_distributed() else lambda error: error
    return [(failure.identifier, sent(failure.error), failure.traceback_text) for failure in failures]


def _merged(
    rows_of_processes: Sequence[Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]], identifiers: Sequence[str]
) -> dict[str, dict[str, Mapping[str, np.ndarray]]]:
    """Class rows (set of heads -> case -> task) of all processes in one, in the order of the cases."""
    sets = {name: None for rows in rows_of_processes for name in rows}  # in order, each once
    merged: dict[str, dict[str, Mapping[str, np.ndarray]]] = {}
    for name in sets:
        by_case = {case: row for rows in rows_of_processes for case, row in rows.get(name, {}).items()}
        merged[name] = {case: by_case[case] for case in identifiers if case in by_case}
    return merged


def _predict(
    trainer: nnUNetTrainer, predictor: nnUNetPredictor, dataset: Any, identifier: str
) -> tuple[np.ndarray, dict, dict[str, dict[str, np.ndarray]]]:
    """Logits ``(heads, X, Y, Z)``, properties and class probabilities by set of heads and task of one case."""
    data, _, previous_stage, properties = dataset.load_case(identifier)
    data = torch.from_numpy(with_previous_stage(trainer, np.asarray(data[:]), previous_stage))
    if not predictor.classification_tasks:
        return predictor.predict_sliding_window_return_logits(data).cpu().numpy(), properties, {}
    logits, classification, (votes,) = predictor.predict_logits_classes_and_votes_from_preprocessed_data(data, properties)
    return logits.cpu().numpy(), properties, _by_head_set(classification) | _other_votes(predictor, votes)


def _validating_predictor(trainer: nnUNetTrainer) -> nnUNetPredictor:
    """A predictor with the network of the trainer, all of its heads at once."""
    network = unwrapped_network(trainer.network)
    refitted = getattr(trainer, "refitted_heads", {})
    if not refitted:
        return predictor_of(trainer, network)
    joint = network.heads if trainer.joint_heads_trained else {}
    heads = {**joint, **{name + REFIT_SUFFIX: head for name, head in refitted.items()}}
    predictor = predictor_of(trainer, JointNetwork(network.segmentation_network, heads))
    predictor.classification_tasks = {name: trainer.classification_tasks[name.removesuffix(REFIT_SUFFIX)] for name in heads}
    return predictor


def _by_head_set(classification: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Probabilities by set of heads and task; the set that counts comes first."""
    sets: dict[str, dict[str, np.ndarray]] = {REFITTED_HEADS: {}, JOINT_HEADS: {}}
    for name, probabilities in classification.items():
        sets[REFITTED_HEADS if name.endswith(REFIT_SUFFIX) else JOINT_HEADS][name.removesuffix(REFIT_SUFFIX)] = probabilities
    return {name: tasks for name, tasks in sets.items() if tasks}


def _other_votes(predictor: nnUNetPredictor, votes: CaseClassification) -> dict[str, dict[str, np.ndarray]]:
    """Probabilities by ``<set of heads>_<aggregation>`` and task, where tiles can vote in other ways, for nnUNetv2_find_best_configuration."""
    sets: dict[str, dict[str, np.ndarray]] = {}
    all_tasks = _by_head_set(dict.fromkeys(predictor.classification_tasks))
    for aggregation in OTHER_AGGREGATIONS:
        if aggregation == "mean" and not votes.evidence:
            continue  # without evidence that is the usual vote
        for heads, tasks in _by_head_set(votes.probabilities_with(aggregation)).items():
            if set(tasks) == set(all_tasks[heads]):
                sets[f"{heads}_{aggregation}"] = tasks
    return sets


def predictor_of(trainer: nnUNetTrainer, network: nn.Module) -> nnUNetPredictor:
    """A predictor that runs a network with the settings of a trainer and of the validation."""
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=True,
        perform_everything_on_device=True,
        device=trainer.device,
        verbose=False,
        verbose_preprocessing=False,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
        classification_entry=trainer.classification_entry(),
    )
    return predictor


@contextmanager
def segmentation_at_full_resolution(trainer: nnUNetTrainer) -> Iterator[None]:
    """Evaluation mode without deep supervision, which is back as it was afterwards."""
    if trainer.enable_deep_supervision:
        trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    try:
        yield
    finally:
        if trainer.enable_deep_supervision:
            trainer.set_deep_supervision_enabled(True)


def with_previous_stage(trainer: nnUNetTrainer, data: np.ndarray, previous_stage: Any) -> np.ndarray:
    """The image, in a cascade with the labels of the previous stage as further channels."""
    if not trainer.is_cascaded:
        return data
    one_hot = convert_labelmap_to_one_hot(np.asarray(previous_stage[:]), trainer.label_manager.foreground_labels, output_dtype=data.dtype)
    # A single channel axis may be left of the stored segmentation.
    return np.vstack((data, one_hot.reshape(-1, *data.shape[1:])))


def _next_stages(trainer: nnUNetTrainer, identifier: str, properties: Mapping) -> list[tuple[str, Any, list[int]]]:
    """For each stage that is trained on this one: output file without ending, its dataset class and the shape of the case there."""
    if trainer.validation_name != VALIDATION:
        return []  # the next stage is trained on the predictions of one checkpoint
    stages = []
    for name in trainer.configuration_manager.next_stage_names or ():
        configuration = trainer.plans_manager.get_configuration(name)
        folder = join(trainer.preprocessed_dataset_folder_base, configuration.data_identifier)
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        try:
            dataset_class = infer_dataset_class(folder)
            shape = list(dataset_class(folder, [identifier]).load_case(identifier)[0].shape[1:])
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            trainer.print_to_log_file(f"{identifier} is not preprocessed for the next stage {name}, its segmentation is left out: {error}")
            continue
        output_folder = join(
            get_output_folder(
                trainer.plans_manager.dataset_name, type(trainer).__name__, trainer.plans_manager.plans_name, trainer.configuration_name
            ),
            "predicted_next_stage",
            name,
        )
        os.makedirs(output_folder, exist_ok=True)
        stages.append((join(output_folder, identifier), dataset_class, shape))
    return stages


def _export(
    logits: np.ndarray,
    properties: dict,
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json: dict,
    output_file_truncated: str,
    save_probabilities: bool,
    next_stages: list[tuple[str, Any, list[int]]],
    classification: Mapping[str, np.ndarray],
) -> None:
    """Write one case; runs in an export process."""
    export_prediction_from_logits(
        logits,
        properties,
        configuration_manager,
        plans_manager,
        dataset_json,
        output_file_truncated,
        save_probabilities,
        classification=classification,
    )
    for output_file, dataset_class, shape in next_stages:
        resample_and_save(
            logits, shape, output_file, plans_manager, configuration_manager, properties, dataset_json, dataset_class=dataset_class
        )


class _Exports:
    """Writes cases in threads beside the prediction of the next ones; on the CPU at once, since there nothing is idle."""

    def __init__(self, device: torch.device) -> None:
        self.failures: list[CaseFailure] = []
        self._threads = ThreadPoolExecutor(max(1, default_num_processes), "export") if device.type != "cpu" else None
        self._running: set[Future] = set()

    def __enter__(self) -> _Exports:
        return self

    def submit(self, identifier: str, function: Callable[..., None], *arguments: Any) -> None:
        """Write one case, at once or soon; waits while too many are waiting."""
        if self._threads is None:
            self._attempt(identifier, function, *arguments)
            return
        while len(self._running) >= max(1, default_num_processes) + QUEUED_EXPORTS:
            self._running = wait(self._running, return_when=FIRST_COMPLETED).not_done
        self._running.add(self._threads.submit(self._attempt, identifier, function, *arguments))

    def _attempt(self, identifier: str, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self.failures.append(CaseFailure(identifier, error, traceback.format_exc()))

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=kind is not None)


def _score(trainer: nnUNetTrainer, folder: str, class_rows: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> dict:
    """Compare with the annotations, and log the result."""
    # Here, because it loads all readers of images, which take 90 MB, and a training comes to this at its very end, if at all.
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, save_summary_json

    label_manager = trainer.label_manager
    summary_file = join(folder, "summary.json")
    summary = compute_metrics_on_folder(
        join(trainer.preprocessed_dataset_folder_base, "gt_segmentations"),
        folder,
        summary_file,
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels,
        label_manager.ignore_label,
        num_processes=1 if trainer.device.type == "cpu" else default_num_processes,
        chill=True,
    )
    if trainer.validated_checkpoint is not None:  # the folder is that of the final checkpoint otherwise
        summary["checkpoint"] = trainer.validated_checkpoint
        save_summary_json(summary, summary_file)
    prefix = _prefix_of_scores(trainer)
    trainer.print_to_log_file("All cases of the validation are predicted", also_print_to_console=True)
    trainer.print_to_log_file("Mean Validation Dice: ", summary["foreground_mean"]["Dice"], also_print_to_console=True)
    trainer.logger.log_summary(f"{prefix}/foreground_dice", summary["foreground_mean"]["Dice"])
    for label, metrics in summary["mean"].items():
        trainer.logger.log_summary(f"{prefix}/class_{label}_dice", metrics["Dice"])
    if class_rows:
        _score_classes(trainer, folder, class_rows)
    return summary


def _prefix_of_scores(trainer: nnUNetTrainer) -> str:
    """What the names of scores begin with in the loggers: those of further checkpoints do not replace those of the final one."""
    return "final_val" if trainer.validation_name == VALIDATION else trainer.validation_name


def _score_classes(trainer: nnUNetTrainer, folder: str, class_rows: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> None:
    """Write and log the classes of the validation cases, for every set of heads; ``classification.csv`` is that of the first set."""
    tasks = trainer.classification_tasks
    summaries = {}
    files = {heads: table_name(heads) if number else CLASSIFICATION_FILE for number, heads in enumerate(class_rows)}
    for file in Path(folder).glob("classification*.csv"):
        if file.name not in files.values():
            file.unlink()  # of heads or votes that an earlier validation had and this one has not
    for heads, rows in class_rows.items():
        write_classification_csv(join(folder, files[heads]), tasks, rows)
        if heads_and_aggregation(heads)[1] != DEFAULT_AGGREGATION:
            continue  # material for nnUNetv2_find_best_configuration
        summaries[heads] = summary = classification_summary(tasks, rows, trainer.case_labels())
        for name, entry in summary["tasks"].items():
            scores = ", ".join(f"{score} {'undefined' if value is None else f'{value:.4f}'}" for score, value in entry["scores"].items())
            trainer.print_to_log_file(
                f"Validation classes, {name}, {heads} heads ({entry['n']} cases, {entry['unknown']} unknown): {scores}"
            )
            for score, value in entry["scores"].items():
                trainer.logger.log_summary(f"{_prefix_of_scores(trainer)}/{heads}_{name}_{score}", value)
        trainer.print_to_log_file(f"Validation case score, {heads} heads: {summary['case_score']}")
    save_json(summaries, join(folder, "classification_summary.json"))

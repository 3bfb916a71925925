"""``nnUNetPredictor``: from images to segmentations and classes with a trained model.

The steps are modules of their own: ``data_iterators`` reads and preprocesses ahead, ``sliding_window_prediction`` places the tiles and
adds them up, ``case_classification`` joins the tiles' class votes, ``export_prediction`` brings everything back to the image.
"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.case_classification import (
    AGGREGATIONS_OF_FEATURES,
    CaseClassification,
    mean_of_folds,
    task_prediction,
)
from nnunetv2.inference.cluster_prediction import predict_on_cluster, predictor_settings
from nnunetv2.inference.data_iterators import (
    InputCase,
    PreprocessingSettings,
    cases_from_arrays,
    cases_from_files,
    preprocess_input_case,
    preprocessed_cases,
    worthwhile_processes,
)
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
    export_prediction_from_logits,
    write_segmentation,
)
from nnunetv2.inference.morphometry import morphometry
from nnunetv2.inference.prediction_files import (
    check_different_folders,
    check_outputs,
    check_part,
    find_input_cases,
    is_complete,
    is_complete_nifti,
    output_files_for,
)
from nnunetv2.inference.prediction_results import CasePrediction, ClassificationOptions, ClassificationTable
from nnunetv2.inference.saliency import (
    ExplainedLogit,
    case_saliency,
    check_saliency_files,
    explained_logit,
    saliency_file,
    saliency_on_original_grid,
    write_saliency,
)
from nnunetv2.inference.slab_prediction import RollingAccumulator, predict_in_slabs
from nnunetv2.inference.sliding_window_prediction import (
    GAUSSIAN_PEAK,
    NOT_FINITE,
    TileAccumulator,
    compute_gaussian,
    grouped_tiles,
    half_accumulation_requested,
    mirror_combinations,
    padded_to_tile,
    tile_slicers,
)
from nnunetv2.inference.trained_model import JOINT_HEADS, load_trained_model
from nnunetv2.network_architecture.classification_heads import CaseHead
from nnunetv2.network_architecture.classification_heads import classification_entry as describe_heads
from nnunetv2.network_architecture.joint_network import JointNetwork, JointOutput, as_joint_output
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.scheduling import LOCAL, CaseErrors, CaseFailure
from nnunetv2.utilities.compilation import compilation_requested, compiled, is_compiled, is_compiler_error, unwrapped_network
from nnunetv2.utilities.file_io import save_json
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.label_handling.class_calibration import CALIBRATION_FILE, ClassCalibration
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask
from nnunetv2.utilities.label_handling.classification_table import (
    CLASSIFICATION_FILE,
    join_parts,
    part_file,
    read_classification_csv,
)

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

PAIRED_TILE_VOXELS = 256 * 1024  # a float32 map of 32 channels of two such tiles takes 64 MiB
SMALL_TILE_VOXELS = 64 * 64  # of these a layer takes less time than its call, so that four copies together are faster than two
# Which tiles are joined on the CPU: for large maps torch has fast convolutions in any case, and many classes take memory for little time.
JOINED_TILE_VOXELS, JOINED_LOGITS_BYTES = 48**3, 32 * 1024**2
# Arrays that together take less than this (float32 of a 128 x 256 x 256 volume) are preprocessed faster than a worker process starts.
SMALL_ARRAYS_BYTES = 32 * 1024**2
# What else than "out of memory" the libraries below torch call a shortage of the device's memory.
OUT_OF_MEMORY_SIGNS = ("out of memory", "cudnn_status_alloc_failed", "cublas_status_alloc_failed")
# Whoever replaces one of these wants to see the logits of whole images.
METHODS_OF_WHOLE_IMAGES = (
    "predict_logits_from_preprocessed_data",
    "predict_logits_and_classes_from_preprocessed_data",
    "predict_sliding_window_return_logits",
    "_internal_predict_sliding_window_return_logits",
    "_predict_sliding_window",
    "_predict_logits_classes_and_saliency",
    "_predict_logits_classes_and_votes",
    "_mean_over_folds",
)


class nnUNetPredictor:
    """Predicts images with a trained model.

    Args:
        tile_step_size: Distance of neighbouring tiles as a fraction of the tile, in (0, 1].
        use_gaussian: Weight the centre of a tile more than its rim.
        use_mirroring: Average over mirrored copies, as far as the training allows.
        perform_everything_on_device: Add up the tiles on the device too; falls back to the CPU if memory does not suffice.
        device: Where the network runs.
        verbose: Say more while working.
        verbose_preprocessing: The same for preprocessing.
        allow_tqdm: Draw progress bars.
    """

    def __init__(
        self,
        tile_step_size: float = 0.5,
        use_gaussian: bool = True,
        use_mirroring: bool = True,
        perform_everything_on_device: bool = True,
        device: torch.device = torch.device("cuda"),
        verbose: bool = False,
        verbose_preprocessing: bool = False,
        allow_tqdm: bool = True,
    ) -> None:
        if not 0 < tile_step_size <= 1:
            raise ValueError(f"The step size must be larger than 0 and at most 1, found {tile_step_size}.")
        self.tile_step_size = tile_step_size
        self.use_gaussian = use_gaussian
        self.use_mirroring = use_mirroring
        self.device = torch.device(device)
        self.verbose = verbose
        self.verbose_preprocessing = verbose_preprocessing
        self.allow_tqdm = allow_tqdm
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # tiles all have the same size
        # Elsewhere the results lie in the CPU's memory in any case.
        self.wants_results_on_device = perform_everything_on_device
        self.perform_everything_on_device = perform_everything_on_device and self.device.type == "cuda"

        self.plans_manager: PlansManager | None = None
        self.configuration_manager: ConfigurationManager | None = None
        self.list_of_parameters: list[dict] | None = None
        self.network: nn.Module | None = None
        self.dataset_json: dict | None = None
        self.trainer_name: str | None = None
        self.allowed_mirroring_axes: tuple[int, ...] | None = None
        self.label_manager = None
        self.classification_entry: dict[str, Any] | None = None
        self.classification_tasks: dict[str, ClassificationTask] = {}
        self.calibration: ClassCalibration | None = None
        self._loaded_parameters: dict | None = None
        self._patches_one_by_one = False  # the device had no memory for several at once

    # --- the model ---------------------------------------------------------------------------------------------------------------

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[int | str] | int | str | None,
        checkpoint_name: str = "checkpoint_final.pth",
        *,
        classification_heads: str | None = None,
    ) -> None:
        """Load a model, ready to predict.

        Args:
            model_training_output_dir: Folder ``TRAINER__PLANS__CONFIGURATION`` with ``dataset.json``, ``plans.json`` and ``fold_*``.
            use_folds: Folds to average; None: all numbered ones that have the checkpoint.
            checkpoint_name: File in each fold's folder.
            classification_heads: ``refit`` or ``joint``: the heads that were trained after the segmentation, or together with it; None:
                the former where there are any.

        Raises:
            FileNotFoundError, CheckpointError, ValueError: See :func:`load_trained_model`.
        """
        if use_folds is None:
            use_folds = self.auto_detect_available_folds(model_training_output_dir, checkpoint_name)
        elif isinstance(use_folds, (int, str)):
            use_folds = [use_folds]
        model = load_trained_model(model_training_output_dir, use_folds, checkpoint_name, classification_heads)
        self.manual_initialization(
            model.network,
            model.plans_manager,
            model.configuration_manager,
            model.parameters,
            model.dataset_json,
            model.trainer_name,
            model.mirroring_axes,
            classification_entry=model.classification_entry,
        )
        self.head_set = model.head_set
        self.model_source = (model_training_output_dir, tuple(use_folds), checkpoint_name, classification_heads)
        calibration_file = Path(model_training_output_dir) / CALIBRATION_FILE
        if self.classification_tasks and calibration_file.is_file():
            self.calibration = ClassCalibration.load(calibration_file, self.classification_tasks)

    def manual_initialization(
        self,
        network: nn.Module,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        parameters: list[dict] | None,
        dataset_json: dict,
        trainer_name: str,
        inference_allowed_mirroring_axes: tuple[int, ...] | None,
        *,
        classification_entry: Mapping[str, Any] | None = None,
    ) -> None:
        """Use a network that exists already, for example in its training.

        Args:
            network: With deep supervision off, or on: then the finest output counts. A ``JointNetwork`` for classes.
            plans_manager: The plans.
            configuration_manager: The configuration of the network.
            parameters: State dict of every fold; None: the network as it is.
            dataset_json: Labels, channels and file ending.
            trainer_name: For messages.
            inference_allowed_mirroring_axes: Axes that may be mirrored; None: none.
            classification_entry: The checkpoint's entry ``classification``, which says what the network's heads predict; None: as the
                heads describe themselves.
        """
        self.plans_manager = plans_manager
        self.configuration_manager = configuration_manager
        self.list_of_parameters = parameters
        self.network = network
        self.dataset_json = dataset_json
        self.trainer_name = trainer_name
        self.allowed_mirroring_axes = inference_allowed_mirroring_axes
        self.label_manager = plans_manager.get_label_manager(dataset_json)
        joint = self._joint_network()
        if not classification_entry and joint is not None:
            classification_entry = describe_heads(joint.heads)
        self.classification_entry = dict(classification_entry) if classification_entry else None
        tasks = (self.classification_entry or {}).get("tasks", {})
        self.classification_tasks = {name: ClassificationTask.from_dict(name, values) for name, values in tasks.items()}
        self.calibration = None  # belongs to a model folder
        self.head_set = JOINT_HEADS
        self.model_source: tuple[str, tuple[int | str, ...], str, str | None] | None = None
        self._loaded_parameters = None
        self._patches_one_by_one = False
        if compilation_requested() and not is_compiled(network):
            self.network = compiled(network)

    @staticmethod
    def auto_detect_available_folds(model_training_output_dir: str, checkpoint_name: str) -> list[int]:
        """Numbered folds that have the checkpoint; ``fold_all`` does not count."""
        files = Path(model_training_output_dir).glob(f"fold_*/{checkpoint_name}")
        folds = sorted(int(number) for number in (file.parent.name.removeprefix("fold_") for file in files) if number.isdigit())
        if not folds:
            raise FileNotFoundError(f"No numbered fold in {model_training_output_dir} has a file {checkpoint_name}.")
        print(f"Found these folds: {folds}")
        return folds

    def check_classification_possible(self, options: ClassificationOptions) -> None:
        """Raise ValueError if the model cannot predict classes in this way; call it before anything is predicted."""
        joint = self._joint_network()
        if not self.classification_tasks or joint is None:
            raise ValueError(
                f"This model ({self.trainer_name}) has no classification heads, so it predicts no classes. "
                "Leave --save_cls out, or train with nnUNetTrainerMultitask on a dataset with a `classification` entry."
            )
        case_heads = self._case_heads()
        if case_heads and options.aggregation not in AGGREGATIONS_OF_FEATURES:
            raise ValueError(
                f"The heads of {', '.join(case_heads)} classify whole cases, so --cls_aggregation {options.aggregation} does not apply. "
                f"Choose one of {', '.join(AGGREGATIONS_OF_FEATURES)}, or --cls_heads joint."
            )
        if not options.only:
            return
        needing = [name for name, head in joint.heads.items() if getattr(head, "needs_segmentation", False)]
        if needing:
            raise ValueError(
                f"The heads of {', '.join(needing)} look at the predicted segmentation, so they cannot be used alone. "
                "Predict both (leave --cls_only out), or take --cls_heads joint."
            )

    def _joint_network(self) -> JointNetwork | None:
        """The network with heads, without what compilation and DDP wrap around it; None for segmentation alone."""
        network = unwrapped_network(self.network)
        return network if isinstance(network, JointNetwork) else None

    # --- inputs and outputs --------------------------------------------------------------------------------------------------------

    def _manage_input_and_output_lists(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: None | str | list[str],
        folder_with_segs_from_prev_stage: str | None = None,
        overwrite: bool = True,
        part_id: int = 0,
        num_parts: int = 1,
        save_probabilities: bool = False,
    ) -> tuple[list[list[str]], list[str] | None, list[str] | None]:
        """The cases of this part that are still to be predicted: image files, output files and previous stages."""
        check_part(part_id, num_parts)
        source, output = list_of_lists_or_source_folder, output_folder_or_list_of_truncated_output_files
        file_ending = self.dataset_json["file_ending"]
        if isinstance(source, (str, os.PathLike)):
            if isinstance(output, (str, os.PathLike)):
                check_different_folders(source, output)
            list_of_lists = find_input_cases(os.fspath(source), file_ending)
        else:
            list_of_lists = [list(files) for files in source]
        if isinstance(output, (str, os.PathLike)):
            outputs = output_files_for(list_of_lists, os.fspath(output), file_ending)
        else:
            outputs = None if output is None else list(output)
        check_outputs(list_of_lists, outputs, file_ending)
        list_of_lists, outputs = list_of_lists[part_id::num_parts], None if outputs is None else outputs[part_id::num_parts]
        previous = self._previous_stage_files(list_of_lists, folder_with_segs_from_prev_stage)
        if overwrite or outputs is None:
            return list_of_lists, outputs, previous
        todo = [index for index, output in enumerate(outputs) if not self._is_complete(output, save_probabilities)]
        print(f"{len(outputs) - len(todo)} of {len(outputs)} cases are complete already; {len(todo)} remain.")
        return (
            [list_of_lists[index] for index in todo],
            [outputs[index] for index in todo],
            None if previous is None else [previous[index] for index in todo],
        )

    def _previous_stage_files(self, list_of_lists: Sequence[Sequence[str]], folder: str | None) -> list[str] | None:
        """Segmentation of the previous stage of every case.

        Raises:
            ValueError: If the configuration needs a previous stage and there is none, or the reverse.
            FileNotFoundError: If cases are missing.
        """
        previous_stage = self.configuration_manager.previous_stage_name
        if folder is None:
            if previous_stage is not None:
                raise ValueError(
                    f"This model is the second stage of a cascade. Predict the same images with {previous_stage} first, and give the "
                    "folder of its segmentations: -prev_stage_predictions FOLDER (folder_with_segs_from_prev_stage)."
                )
            return None
        if previous_stage is None:
            raise ValueError(
                f"Segmentations of a previous stage are given ({folder}), but this model has no previous stage. Leave them out."
            )
        ending = self.dataset_json["file_ending"]
        files = [name + ending for name in output_files_for(list_of_lists, folder, ending)]
        missing = [file for file in files if not os.path.isfile(file)]
        if missing:
            raise FileNotFoundError(f"{len(missing)} segmentations of the previous stage are missing, for example {missing[0]}.")
        return files

    def _is_complete(self, output_file_truncated: str | None, save_probabilities: bool) -> bool:
        """Whether an earlier run finished a case."""
        if output_file_truncated is None:
            return False
        reader = self.plans_manager.image_reader_writer_class()
        return is_complete(output_file_truncated, self.dataset_json["file_ending"], reader, save_probabilities)

    # --- prediction of many cases --------------------------------------------------------------------------------------------------

    def predict_from_files(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | None | list[str],
        save_probabilities: bool = False,
        overwrite: bool = True,
        num_processes_preprocessing: int = default_num_processes,
        num_processes_segmentation_export: int = default_num_processes,
        folder_with_segs_from_prev_stage: str | None = None,
        num_parts: int = 1,
        part_id: int = 0,
        *,
        save_classification: bool | str | os.PathLike = False,
        classification_options: ClassificationOptions | None = None,
        scheduler: str = LOCAL,
        device_of_workers: str | None = None,
    ) -> list | None:
        """Predict the images of a folder, or lists of image files.

        Args:
            list_of_lists_or_source_folder: Folder of images ``CASE_CCCC.ending``, or for every case the list of its channels.
            output_folder_or_list_of_truncated_output_files: Folder (created), output files without ending, or None to return results.
            save_probabilities: Also write, or return, probabilities.
            overwrite: Predict again what is complete already.
            num_processes_preprocessing: Processes that prepare cases ahead, where that is worth it; 0: none.
            num_processes_segmentation_export: Threads that write results beside the network; 0: none.
            folder_with_segs_from_prev_stage: For cascades.
            num_parts: Over how many processes or machines the cases are spread.
            part_id: Which of them this is, from 0.
            save_classification: Write ``classification.csv`` into the output folder, or into this file.
            classification_options: How classes are predicted; needs ``save_classification``. With ``saliency`` maps are written into the
                subfolder ``saliency`` beside the segmentations, which needs an output.
            scheduler: ``"local"``, or the address of a Dask scheduler whose workers predict the cases; needs an output, and a model that
                was loaded from its folder.
            device_of_workers: ``cuda``, ``cpu`` or ``mps``; None: the best that each worker has.

        Returns:
            Without an output, by case the segmentation, or a tuple with its probabilities; else a None for every case. Only None if
            no case is left.

        Raises:
            CaseErrors: After all others are finished, if some cases failed.
        """
        options = self._classification_options(save_classification, classification_options)
        output = output_folder_or_list_of_truncated_output_files
        if options is not None and options.saliency and output is None:
            raise ValueError("Saliency is written to files, but no output is given. Give an output folder, or use predict_case.")
        if scheduler != LOCAL and output is None:
            raise ValueError("The workers of a cluster write their results to files, but no output is given. Give an output folder.")
        # Also the cases that are complete: the table has a row for each.
        list_of_lists, outputs, previous = self._manage_input_and_output_lists(
            list_of_lists_or_source_folder, output, folder_with_segs_from_prev_stage, True, part_id, num_parts, save_probabilities
        )
        if options is not None and options.saliency:  # of all parts: they share the folder
            _, of_all_parts, _ = self._manage_input_and_output_lists(list_of_lists_or_source_folder, output)
            check_saliency_files(of_all_parts, list(self.classification_tasks))
        folder = self._prepare_output_folder(output)
        if folder is not None:
            arguments = {
                "list_of_lists_or_source_folder": list_of_lists_or_source_folder,
                "output_folder_or_list_of_truncated_output_files": output,
                "save_probabilities": save_probabilities,
                "overwrite": overwrite,
                "num_processes_preprocessing": num_processes_preprocessing,
                "num_processes_segmentation_export": num_processes_segmentation_export,
                "folder_with_segs_from_prev_stage": folder_with_segs_from_prev_stage,
                "num_parts": num_parts,
                "part_id": part_id,
            }
            save_json(arguments, folder / "predict_from_raw_data_args.json", sort_keys=True)
            save_json(self.dataset_json, folder / "dataset.json")
            save_json(self.plans_manager.plans, folder / "plans.json")

        table = None
        table_file = None
        if options is not None:
            table_file = self._table_file(save_classification, folder)
            table = ClassificationTable(
                file=table_file if num_parts == 1 else part_file(table_file, part_id),
                tasks=self.classification_tasks,
                calibration=self._calibration_for(options, verbose=True),
            )
        identifiers = [case.identifier for case in cases_from_files(list_of_lists, None, outputs, self.dataset_json["file_ending"])]
        if table is not None and len(set(identifiers)) < len(identifiers):
            raise ValueError("Several cases have the same identifier, so they cannot share one table of classes. Rename their files.")
        todo = list(range(len(list_of_lists)))
        if not overwrite:
            todo = self._cases_not_complete(identifiers, outputs, save_probabilities, table, table_file, options)
        elif table is not None:
            for file in (table_file, table.file):  # rows of an earlier run must not pass for this one's
                file.unlink(missing_ok=True)

        results: list | None = None
        try:
            if todo and scheduler != LOCAL:
                cases = [
                    _with_absolute_paths(list_of_lists[index], outputs[index], previous and previous[index], identifiers[index])
                    for index in todo
                ]
                workers = predictor_settings(self, device_of_workers)
                endings = (self.dataset_json["file_ending"], ".npz", ".pkl")
                results = predict_on_cluster(scheduler, workers, cases, save_probabilities, options, table, self.allow_tqdm, endings)
            elif todo:
                iterator = self._internal_get_data_iterator_from_lists_of_filenames(
                    [list_of_lists[index] for index in todo],
                    None if previous is None else [previous[index] for index in todo],
                    None if outputs is None else [outputs[index] for index in todo],
                    num_processes_preprocessing,
                )
                results = self._predict_items(
                    iterator, len(todo), save_probabilities, num_processes_segmentation_export, options=options, table=table
                )
        finally:
            if table is not None:
                table.write()
                if num_parts > 1:
                    join_parts(table_file, self.classification_tasks, num_parts)
        return results

    def _classification_options(
        self, save_classification: bool | str | os.PathLike, options: ClassificationOptions | None
    ) -> ClassificationOptions | None:
        """The options if classes are wanted; checked against the model."""
        if save_classification is False:
            if options is not None and (options.only or options.saliency):
                wanted = "Classes alone are" if options.only else "Saliency is"
                raise ValueError(f"{wanted} asked for, but nowhere to write the classes to: give save_classification too.")
            return None
        options = options or ClassificationOptions()
        self.check_classification_possible(options)
        return options

    def _calibration_for(self, options: ClassificationOptions, verbose: bool = False) -> ClassCalibration | None:
        """The calibration of the model, if it is wanted and was fitted on predictions made in the same way."""
        if self.calibration is None or not options.calibrated:
            return None
        checkpoint = self.calibration.checkpoint if self.model_source is None else self.model_source[2]
        if self.calibration.fits(self.classification_tasks, self.head_set, options.effective_aggregation, checkpoint):
            return self.calibration
        if verbose and checkpoint != self.calibration.checkpoint:
            print(
                f"The calibration of the model was fitted on predictions of {self.calibration.checkpoint}; it is not applied to those of "
                f"{checkpoint}. To calibrate these: nnUNetv2_calibrate_classification ... -chk {checkpoint}"
            )
        elif verbose:
            print(
                f"The calibration of the model was fitted with heads {self.calibration.heads!r} and aggregation "
                f"{self.calibration.aggregation!r}; it is not applied to {self.head_set!r} and {options.effective_aggregation!r}."
            )
        return None

    @staticmethod
    def _table_file(save_classification: bool | str | os.PathLike, folder: Path | None) -> Path:
        """Where ``classification.csv`` goes."""
        if isinstance(save_classification, (str, os.PathLike)):
            file = Path(save_classification)
            file.parent.mkdir(parents=True, exist_ok=True)
            return file
        if folder is None:
            raise ValueError("Give save_classification a file name, because there is no output folder for classification.csv.")
        return folder / CLASSIFICATION_FILE

    @staticmethod
    def _prepare_output_folder(output: None | str | os.PathLike | Sequence[str]) -> Path | None:
        """Create the output folder, or those of the listed output files; returns the folder if there is one for all."""
        if output is None:
            return None
        if isinstance(output, (str, os.PathLike)):
            Path(output).mkdir(parents=True, exist_ok=True)
            return Path(output)
        for parent in {Path(file).parent for file in output}:
            parent.mkdir(parents=True, exist_ok=True)
        return None

    def _cases_not_complete(
        self,
        identifiers: Sequence[str],
        outputs: Sequence[str] | None,
        save_probabilities: bool,
        table: ClassificationTable | None,
        table_file: Path | None,
        options: ClassificationOptions | None,
    ) -> list[int]:
        """Indices of cases whose files or row in the table are missing; keeps the rows that are there."""
        rows: dict[str, Mapping[str, np.ndarray]] = {}
        if table is not None:
            for file in (table_file, table.file):  # the part's own table is the newer one
                if file.is_file():
                    rows.update(read_classification_csv(file, table.tasks, raw=True))
            # The table of all parts may be there already: only the rows of this part's cases go on.
            table.rows.update({name: rows[name] for name in identifiers if name in rows})
        only_classes = options is not None and options.only
        maps = list(self.classification_tasks) if options is not None and options.saliency else []
        todo = []
        for index, identifier in enumerate(identifiers):
            files_complete = only_classes or (outputs is not None and self._is_complete(outputs[index], save_probabilities))
            files_complete = files_complete and all(is_complete_nifti(saliency_file(outputs[index], task)) for task in maps)
            if not files_complete or (table is not None and identifier not in table.rows):
                todo.append(index)
        print(f"{len(identifiers) - len(todo)} of {len(identifiers)} cases are complete already; {len(todo)} remain.")
        return todo

    def _internal_get_data_iterator_from_lists_of_filenames(
        self,
        input_list_of_lists: list[list[str]],
        seg_from_prev_stage_files: list[str] | None,
        output_filenames_truncated: list[str] | None,
        num_processes: int,
    ) -> Iterator[dict[str, Any]]:
        """Preprocessed cases in order; in this process where that is faster than starting others."""
        cases = cases_from_files(
            input_list_of_lists, seg_from_prev_stage_files, output_filenames_truncated, self.dataset_json["file_ending"]
        )
        return preprocessed_cases(
            cases,
            self._preprocessing_settings(),
            worthwhile_processes(input_list_of_lists, num_processes),
            pin_memory=self.device.type == "cuda",
            in_thread=num_processes > 0,
        )

    def get_data_iterator_from_raw_npy_data(
        self,
        image_or_list_of_images: np.ndarray | list[np.ndarray],
        segs_from_prev_stage_or_list_of_segs_from_prev_stage: None | np.ndarray | list[np.ndarray],
        properties_or_list_of_properties: dict | list[dict],
        truncated_ofname: str | list[str] | None,
        num_processes: int = 3,
    ) -> Iterator[dict[str, Any]]:
        """Preprocessed cases of arrays ``(C, X, Y, Z)``, in order."""
        images = [image_or_list_of_images] if isinstance(image_or_list_of_images, np.ndarray) else list(image_or_list_of_images)
        previous = segs_from_prev_stage_or_list_of_segs_from_prev_stage
        previous = [previous] if isinstance(previous, np.ndarray) else previous
        properties = properties_or_list_of_properties
        properties = [properties] * len(images) if isinstance(properties, Mapping) else list(properties)
        outputs = [truncated_ofname] if isinstance(truncated_ofname, str) else truncated_ofname
        for name, values in (("segmentations of the previous stage", previous), ("properties", properties), ("output files", outputs)):
            if values is not None and len(values) != len(images):
                raise ValueError(f"There are {len(images)} images but {len(values)} {name}; give one for each image.")
        cases = cases_from_arrays(images, previous, properties, outputs)
        processes = num_processes if sum(image.nbytes for image in images) > SMALL_ARRAYS_BYTES else 0
        pin = self.device.type == "cuda"
        return preprocessed_cases(cases, self._preprocessing_settings(), processes, pin_memory=pin, in_thread=num_processes > 0)

    def _preprocessing_settings(self) -> PreprocessingSettings:
        return PreprocessingSettings(
            plans_manager=self.plans_manager,
            configuration_manager=self.configuration_manager,
            dataset_json=self.dataset_json,
            verbose=self.verbose_preprocessing,
        )

    def predict_from_list_of_npy_arrays(
        self,
        image_or_list_of_images: np.ndarray | list[np.ndarray],
        segs_from_prev_stage_or_list_of_segs_from_prev_stage: None | np.ndarray | list[np.ndarray],
        properties_or_list_of_properties: dict | list[dict],
        truncated_ofname: str | list[str] | None,
        num_processes: int = 3,
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> list:
        """Predict arrays ``(C, X, Y, Z)``; results as in :meth:`predict_from_files`."""
        iterator = self.get_data_iterator_from_raw_npy_data(
            image_or_list_of_images,
            segs_from_prev_stage_or_list_of_segs_from_prev_stage,
            properties_or_list_of_properties,
            truncated_ofname,
            num_processes,
        )
        return self.predict_from_data_iterator(iterator, save_probabilities, num_processes_segmentation_export)

    def predict_from_data_iterator(
        self,
        data_iterator: Iterable[dict[str, Any]],
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> list:
        """Predict preprocessed cases.

        Args:
            data_iterator: Yields ``data`` (tensor, or an ``.npy`` file that is deleted after reading), ``data_properties`` and
                ``ofile`` (output file without ending; None: return the result).
            save_probabilities: Also write, or return, probabilities.
            num_processes_segmentation_export: Threads that write results beside the network; 0: none.

        Returns:
            By case the segmentation (or a tuple with probabilities), or None where it was written to files.

        Raises:
            CaseErrors: After all others are finished, if some cases failed. Its ``results`` are those of all cases, None for failed ones.
        """
        return self._predict_items(data_iterator, None, save_probabilities, num_processes_segmentation_export)

    def predict_from_files_sequential(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | None | list[str],
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | None = None,
        *,
        num_parts: int = 1,
        part_id: int = 0,
        save_classification: bool | str | os.PathLike = False,
        classification_options: ClassificationOptions | None = None,
    ) -> list | None:
        """Like :meth:`predict_from_files`, in this process and one step after the other.

        Returns:
            Without an output, the results by case; else an empty list. None if no case is left.
        """
        results = self.predict_from_files(
            list_of_lists_or_source_folder,
            output_folder_or_list_of_truncated_output_files,
            save_probabilities,
            overwrite,
            0,
            0,
            folder_with_segs_from_prev_stage,
            num_parts,
            part_id,
            save_classification=save_classification,
            classification_options=classification_options,
        )
        return [] if results is not None and output_folder_or_list_of_truncated_output_files is not None else results

    def _predict_items(
        self,
        items: Iterable[dict[str, Any]],
        number_of_cases: int | None,
        save_probabilities: bool,
        num_export: int,
        *,
        options: ClassificationOptions | None = None,
        table: ClassificationTable | None = None,
    ) -> list:
        """Predict preprocessed cases, and export them in threads while the network works on the next.

        Threads, not processes: reading, resampling and writing release Python's lock, and the logits need not be copied.
        """
        outcomes: list[Any] = []
        pending: dict[Future, int] = {}

        def settle(index: int, outcome: Any) -> None:
            outcomes[index] = outcome
            if isinstance(outcome, CaseFailure):
                print(f"ERROR: case {outcome}", flush=True)
                if table is not None:
                    table.add(outcome.identifier, outcome.reason)

        executor = ThreadPoolExecutor(max(num_export, 1), thread_name_prefix="export")
        with executor:
            try:
                for index, item in enumerate(
                    tqdm(items, total=number_of_cases, desc="cases", disable=not self._shows_cases(number_of_cases))
                ):
                    outcomes.append(None)
                    identifier = _identifier_of(item, index)
                    try:
                        if "failure" in item:
                            settle(index, item["failure"])
                            continue
                        result, classes, maps = self._predict_item(item, options, save_probabilities)
                        if table is not None:
                            table.add(identifier, classes)
                        if result is None and not maps:
                            continue
                        # A slot first: as many cases as there are threads may wait with their results in memory, not more.
                        while len(pending) >= max(num_export, 1):
                            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                                settle(pending.pop(future), future.result())
                        classes = self._calibrated(classes, options)
                        no_network = num_export == 0 or index + 1 == number_of_cases  # runs beside the export
                        threads = max(1, torch.get_num_threads() // (1 + len(pending))) if no_network else 1
                        job = (result, item["data_properties"], item["ofile"], save_probabilities, classes, identifier, maps, threads)
                        if num_export > 0:
                            pending[executor.submit(self._export_or_failure, *job)] = index
                        else:
                            settle(index, self._export_or_failure(*job))
                        del result, maps, job
                    except Exception as error:
                        settle(index, CaseFailure(identifier, error, traceback.format_exc()))
                    del item
                for future, index in list(pending.items()):
                    settle(index, future.result())
            finally:
                if hasattr(items, "close"):
                    items.close()  # ends the workers, also after an interrupt
                empty_cache(self.device)
        failures = [outcome for outcome in outcomes if isinstance(outcome, CaseFailure)]
        if failures:
            error = CaseErrors(failures, len(outcomes), "prediction")
            error.results = [None if isinstance(outcome, CaseFailure) else outcome for outcome in outcomes]
            raise error from failures[0].error
        return outcomes

    def _shows_cases(self, number_of_cases: int | None) -> bool:
        """Whether a progress bar over cases helps."""
        return self.allow_tqdm and number_of_cases is not None and number_of_cases > 1

    def _predict_item(
        self, item: dict[str, Any], options: ClassificationOptions | None, save_probabilities: bool
    ) -> tuple[torch.Tensor | np.ndarray | None, dict[str, np.ndarray], dict[str, torch.Tensor]]:
        """See :meth:`_predict_result`."""
        data = item["data"]
        if isinstance(data, (str, os.PathLike)):
            file, data = data, torch.from_numpy(np.load(data, allow_pickle=False))
            os.remove(file)
        if self.verbose:
            print(f"\nPredicting {_identifier_of(item, 0)}, shape {tuple(data.shape)}")
        return self._predict_result(data, item["data_properties"], options, save_probabilities)

    def _predict_result(
        self, data: torch.Tensor, properties: dict, options: ClassificationOptions | None, with_probabilities: bool
    ) -> tuple[torch.Tensor | np.ndarray | None, dict[str, np.ndarray], dict[str, torch.Tensor]]:
        """Result, class probabilities and saliency of one preprocessed case.

        The result is the finished segmentation, an array, where it comes about slab by slab; else logits, a tensor; None for classes alone.
        """
        if self.works_in_slabs(with_probabilities) and (options is None or not options.only):
            if options is not None:
                self.check_classification_possible(options)
            found = predict_in_slabs(self, data, properties, options)
            if found is not None:
                maps = {}
                if options is not None and options.saliency:
                    maps = self._predict_saliency(data, self._calibrated(found.classes, options), found.votes_of_folds)
                return found.segmentation, found.classes, maps
        if options is None:
            return self.predict_logits_from_preprocessed_data(data).cpu(), {}, {}
        return self._predict_logits_classes_and_saliency(data, options, properties)

    def works_in_slabs(self, with_probabilities: bool) -> bool:
        """Whether deep images are predicted with few of their logits in memory, see ``slab_prediction``."""
        return (
            self.device.type == "cpu"
            and not with_probabilities
            and not half_accumulation_requested()
            and all(getattr(getattr(self, name), "__func__", None) is method for name, method in METHODS_AS_WRITTEN.items())
        )

    def _calibrated(self, classes: dict[str, np.ndarray], options: ClassificationOptions | None) -> dict[str, np.ndarray]:
        """Class probabilities as the options want them."""
        calibration = None if options is None else self._calibration_for(options)
        return classes if calibration is None else calibration.apply(classes)

    def _export_or_failure(
        self,
        result: torch.Tensor | np.ndarray | None,
        properties: dict,
        output_file: str | None,
        save_probabilities: bool,
        classes: Mapping[str, np.ndarray],
        identifier: str,
        maps: Mapping[str, torch.Tensor],
        threads: int = 1,
    ) -> Any:
        """Write a case, or return its result; errors are returned as well."""
        try:
            if maps:  # before the segmentation, which stands for a complete case
                write_saliency(maps, output_file, self.plans_manager, self.configuration_manager, properties)
            return None if result is None else self._finish(result, properties, output_file, save_probabilities, classes, threads)
        except Exception as error:
            return CaseFailure(identifier, error, traceback.format_exc())

    def _finish(
        self,
        result: torch.Tensor | np.ndarray,
        properties: dict,
        output_file: str | None,
        with_probabilities: bool,
        classes: Mapping[str, np.ndarray] | None = None,
        threads: int = 1,
    ) -> Any:
        """Write a result of :meth:`_predict_result`, or without a file return the segmentation, with probabilities a tuple of both."""
        if isinstance(result, np.ndarray):
            if output_file is None:
                return result
            write_segmentation(result, properties, self.plans_manager, self.dataset_json, output_file)
        elif output_file is None:
            managers = self.plans_manager, self.configuration_manager, self.label_manager
            return convert_predicted_logits_to_segmentation_with_correct_shape(
                result, *managers, properties, with_probabilities, threads=threads
            )
        else:
            managers = self.configuration_manager, self.plans_manager
            what = (result, properties, *managers, self.dataset_json, output_file, with_probabilities)
            export_prediction_from_logits(*what, classification=classes, threads=threads)
        return None

    # --- prediction of one case ----------------------------------------------------------------------------------------------------

    def predict_single_npy_array(
        self,
        input_image: np.ndarray,
        image_properties: dict,
        segmentation_previous_stage: np.ndarray | None = None,
        output_file_truncated: str | None = None,
        save_or_return_probabilities: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray] | None:
        """Predict one array ``(C, X, Y, Z)`` in this process.

        Args:
            input_image: In the axis order of the model's reader.
            image_properties: At least ``spacing``, three numbers in the order of the axes; all of the reader's for writing files.
            segmentation_previous_stage: For cascades.
            output_file_truncated: Write to this file (without ending) instead of returning.
            save_or_return_probabilities: Probabilities too.
        """
        data, properties = self._preprocess_array(input_image, image_properties, segmentation_previous_stage)
        result, _, _ = self._predict_result(data, properties, None, save_or_return_probabilities)
        return self._finish(result, properties, output_file_truncated, save_or_return_probabilities, threads=torch.get_num_threads())

    def predict_case(
        self,
        image: np.ndarray,
        properties: dict,
        *,
        return_probabilities: bool = True,
        classification_options: ClassificationOptions | None = None,
    ) -> CasePrediction:
        """Segmentation and classes of one array ``(C, X, Y, Z)``.

        Args:
            image: In the axis order of the model's reader, as its ``read_images`` returns it.
            properties: Of the image, at least ``spacing``.
            return_probabilities: Also return the probabilities of the segmentation; they take the most memory.
            classification_options: How tiles vote, and whether saliency is wanted; ``only`` has no effect here.

        Raises:
            ValueError: If saliency is asked for and the model has no heads.
        """
        options = replace(classification_options or ClassificationOptions(), only=False)
        if options.saliency:
            self.check_classification_possible(options)
        data, case_properties = self._preprocess_array(image, properties, None)
        wanted = options if self.classification_tasks else None
        result, classes, maps = self._predict_result(data, case_properties, wanted, return_probabilities)
        classes = self._calibrated(classes, wanted)
        result = self._finish(result, case_properties, None, return_probabilities, threads=torch.get_num_threads())
        segmentation, probabilities = result if return_probabilities else (result, None)
        classification = {name: task_prediction(self.classification_tasks[name], values) for name, values in classes.items()}
        grid = (self.plans_manager, self.configuration_manager, case_properties)
        saliency = {name: saliency_on_original_grid(values, *grid) for name, values in maps.items()}
        return CasePrediction(segmentation=segmentation, probabilities=probabilities, classification=classification, saliency=saliency)

    def _preprocess_array(self, image: np.ndarray, properties: dict, previous: np.ndarray | None) -> tuple[torch.Tensor, dict]:
        case = InputCase(identifier="image", image=np.asarray(image), properties=properties, previous_segmentation=previous)
        data, case_properties = preprocess_input_case(case, self._preprocessing_settings())
        return torch.from_numpy(data), case_properties

    @torch.inference_mode()
    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """Logits ``(heads, X, Y, Z)`` of a preprocessed case, averaged over the folds, on the CPU."""
        total = None
        for _ in self._each_fold():
            logits = self.predict_sliding_window_return_logits(data).to("cpu")
            total = logits if total is None else total.add_(logits)
        return self._mean_over_folds(total)

    @torch.inference_mode()
    def predict_logits_and_classes_from_preprocessed_data(
        self, data: torch.Tensor, options: ClassificationOptions | None = None, properties: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor | None, dict[str, np.ndarray]]:
        """Logits of a preprocessed case and class probabilities ``(K,)`` by task, averaged over the folds and not calibrated.

        One pass of the encoder per tile gives both.

        Args:
            data: ``(C, X, Y, Z)``.
            options: With ``only`` the decoder is not run and the logits are None.
            properties: Of the case; heads that measure structures take the distance of slices from it where the configuration is 2D.

        Raises:
            ValueError: If the model has no heads, or they need the segmentation.
        """
        logits, classes, _ = self._predict_logits_classes_and_votes(data, options or ClassificationOptions(), properties)
        return logits, classes

    def predict_logits_classes_and_votes_from_preprocessed_data(
        self, data: torch.Tensor, properties: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, dict[str, np.ndarray], list[CaseClassification]]:
        """The same with what the tiles said in each fold, from which other aggregations can be computed."""
        return self._predict_logits_classes_and_votes(data, ClassificationOptions(), properties)

    @torch.inference_mode()
    def _predict_logits_classes_and_votes(
        self, data: torch.Tensor, options: ClassificationOptions, properties: Mapping[str, Any] | None
    ) -> tuple[torch.Tensor | None, dict[str, np.ndarray], list[CaseClassification]]:
        """Logits and class probabilities of a preprocessed case, and how its tiles voted in each fold."""
        self.check_classification_possible(options)
        total, folds, votes_of_folds = None, [], []
        for _ in self._each_fold():
            votes = self._new_votes(options.effective_aggregation)
            logits = self._predict_sliding_window(data, votes, with_segmentation=not options.only)
            folds.append(votes.probabilities(self._measures(self._map_to_measure(logits), data, properties)))
            votes_of_folds.append(votes)
            if logits is not None:
                logits = logits.to("cpu")
                total = logits if total is None else total.add_(logits)
        return None if total is None else self._mean_over_folds(total), mean_of_folds(folds), votes_of_folds

    def _predict_logits_classes_and_saliency(
        self, data: torch.Tensor, options: ClassificationOptions, properties: Mapping[str, Any] | None
    ) -> tuple[torch.Tensor | None, dict[str, np.ndarray], dict[str, torch.Tensor]]:
        """Logits and class probabilities of a preprocessed case, and a map ``(X, Y, Z)`` by task where saliency is asked for."""
        logits, classes, votes_of_folds = self._predict_logits_classes_and_votes(data, options, properties)
        if not options.saliency:
            return logits, classes, {}
        return logits, classes, self._predict_saliency(data, self._calibrated(classes, options), votes_of_folds)

    def _predict_saliency(
        self, data: torch.Tensor, classes: Mapping[str, np.ndarray], votes_of_folds: Sequence[CaseClassification]
    ) -> dict[str, torch.Tensor]:
        """Where the classes that were decided on were seen, averaged over the folds: ``(X, Y, Z)`` by task, on the CPU."""
        joint = self._joint_network()
        tasks = self.classification_tasks
        padded, inside = padded_to_tile(data, self.configuration_manager.patch_size)
        slicers = self._internal_get_sliding_window_slicers(tuple(padded.shape[1:]))
        tile_weights = self._tile_weights(torch.float32, torch.device("cpu"))
        chosen = {name: int(np.argmax(classes[name])) for name in tasks}
        total = None
        for _, votes in zip(self._each_fold(), votes_of_folds, strict=True):
            explained = {
                name: ExplainedLogit(index=explained_logit(task, classes[name]), tile_shares=votes.tile_shares(name, chosen[name]))
                for name, task in tasks.items()
            }
            with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
                maps = case_saliency(
                    joint,
                    padded,
                    slicers,
                    explained,
                    tile_weights=tile_weights,
                    device=self.device,
                    show_progress=self.allow_tqdm,
                )
            total = maps if total is None else total.add_(maps)
        return dict(zip(tasks, self._mean_over_folds(total)[(slice(None), *inside[1:])], strict=True))

    @torch.inference_mode()
    def case_features_from_preprocessed_data(
        self, data: torch.Tensor, properties: Mapping[str, Any] | None = None, aggregation: str = "evidence"
    ) -> dict[str, np.ndarray]:
        """What the heads of whole cases look at, ``(F,)`` by task, with the network's present weights; see :class:`CaseHead`."""
        votes = self._new_votes(aggregation)
        logits = self._predict_sliding_window(data, votes)
        measures = self._measures(self._map_to_measure(logits), data, properties)
        return {name: votes.case_features(name, measures.get(name)) for name in votes.case_heads}

    def _new_votes(self, aggregation: str) -> CaseClassification:
        """Collects the votes of one case."""
        labels = self.dataset_json["labels"]
        tasks = self.classification_tasks
        evidence = {name: PredictedEvidence.from_labels(task.evidence, labels) for name, task in tasks.items() if task.evidence}
        return CaseClassification(tasks, evidence, aggregation, self._case_heads())

    def _case_heads(self) -> dict[str, CaseHead]:
        """The heads that classify whole cases, by task."""
        joint = self._joint_network()
        heads = {} if joint is None else joint.heads
        return {name: heads[name] for name in self.classification_tasks if isinstance(heads[name], CaseHead)}

    def measures_structures(self) -> bool:
        """Whether a head looks at the sizes and shapes of the predicted structures."""
        return any(head.description.measures for head in self._case_heads().values())

    def _map_to_measure(self, logits: torch.Tensor | None) -> np.ndarray | None:
        """The labels of one fold on the network's grid, if a head looks at them."""
        if not self.measures_structures():
            return None
        return self.label_manager.convert_logits_to_segmentation(logits.to("cpu")).numpy()

    def _measures(self, label_map: np.ndarray | None, data: torch.Tensor, properties: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        """Morphometry of the predicted structures by task, for the heads that look at it."""
        measuring = {name: head.description for name, head in self._case_heads().items() if head.description.measures}
        if not measuring:
            return {}
        image, spacing = data.to("cpu").numpy(), self._spacing_of_preprocessed(properties)
        measured: dict[tuple, np.ndarray] = {}
        for description in measuring.values():
            key = tuple(description.structures.items())
            if key not in measured:
                measured[key] = morphometry(label_map, image, spacing, description.structures)
        return {name: measured[tuple(description.structures.items())] for name, description in measuring.items()}

    def _spacing_of_preprocessed(self, properties: Mapping[str, Any] | None) -> list[float]:
        """Voxel size in mm of a preprocessed case; a 2D configuration leaves the distance of slices as it was."""
        spacing = list(self.configuration_manager.spacing)
        if len(spacing) == 3:
            return spacing
        if properties is None:
            return [self.plans_manager.original_median_spacing_after_transp[0], *spacing]
        return [properties["spacing"][self.plans_manager.transpose_forward[0]], *spacing]

    def _each_fold(self) -> Iterator[None]:
        """Have the network hold the weights of each fold in turn."""
        for parameters in self.list_of_parameters or [None]:
            # With one fold the weights stay where they are from case to case.
            if parameters is not None and self._loaded_parameters is not parameters:
                with torch.inference_mode(False):
                    unwrapped_network(self.network).load_state_dict(parameters)
                self._loaded_parameters = parameters
            yield

    def _mean_over_folds(self, total: torch.Tensor) -> torch.Tensor:
        count = len(self.list_of_parameters or [None])
        return total.div_(count) if count > 1 else total

    # --- the sliding window ----------------------------------------------------------------------------------------------------------

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """Logits ``(heads, X, Y, Z)`` of a preprocessed image ``(C, X, Y, Z)`` with the network's present weights."""
        logits = self._predict_sliding_window(input_image, None)
        assert logits is not None
        return logits

    @torch.inference_mode()
    def _predict_sliding_window(
        self, image: torch.Tensor, classification: CaseClassification | None, with_segmentation: bool = True
    ) -> torch.Tensor | None:
        """Logits of the image; class votes of its tiles go into ``classification``."""
        if image.ndim != 4:
            raise ValueError(f"Expected a preprocessed image (C, X, Y, Z), found shape {tuple(image.shape)}.")
        self._prepare_network()
        empty_cache(self.device)
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            padded, inside = padded_to_tile(image, self.configuration_manager.patch_size)
            slicers = self._internal_get_sliding_window_slicers(tuple(padded.shape[1:]))
            if not with_segmentation:
                self._classify_tiles(padded, slicers, classification)
                return None
            extra = () if classification is None else (classification,)
            try:
                logits = self._internal_predict_sliding_window_return_logits(padded, slicers, self.perform_everything_on_device, *extra)
            except RuntimeError as error:
                if not self.perform_everything_on_device or not _is_out_of_memory(error):
                    raise
                print("The device's memory does not hold the results of this image; they are collected in the CPU's memory.")
                self._patches_one_by_one = True
                logits = None
            if logits is None:  # outside the handler, which keeps the failed attempt's tensors alive
                empty_cache(self.device)
                if classification is not None:
                    classification.clear()
                logits = self._internal_predict_sliding_window_return_logits(padded, slicers, False, *extra)
            return logits[(slice(None), *inside[1:])]

    def _prepare_network(self) -> None:
        """Have the network on the device and not training; where it is so already, moving it again would take longer than a small image."""
        modules = list(self.network.modules())
        # Read from the modules themselves, since parameters() and buffers() would each walk through the network again.
        weights = (tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values()))
        if any(tensor is not None and tensor.device != self.device for tensor in weights):  # also where "cuda" names the current of several
            with torch.inference_mode(False):  # moved in inference mode, its weights could never be trained again
                self.network = self.network.to(self.device)
        if any(module.training for module in modules):
            self.network.eval()

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> list[tuple[slice | int, ...]]:
        """Where the tiles lie in a padded image."""
        return tile_slicers(image_size, self.configuration_manager.patch_size, self.tile_step_size)

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self,
        data: torch.Tensor,
        slicers: Sequence[tuple[slice | int, ...]],
        do_on_device: bool = True,
        classification: CaseClassification | None = None,
    ) -> torch.Tensor:
        """Predict every tile and average them where they overlap.

        Args:
            data: Padded image ``(C, X, Y, Z)``.
            slicers: See :meth:`_internal_get_sliding_window_slicers`.
            do_on_device: Add up on the device instead of in the CPU's memory.
            classification: Collects the class votes of the tiles, if classes are wanted.

        Raises:
            RuntimeError: If the network predicts something that is not a finite number.
        """
        results_device = self.device if do_on_device else torch.device("cpu")
        data = data.to(results_device)
        half = half_accumulation_requested()
        weights = self._tile_weights(torch.half if half else torch.float32, results_device)
        accumulator = TileAccumulator(self.label_manager.num_segmentation_heads, data.shape[1:], weights, half=half, device=results_device)
        for group in self._with_progress(self._groups_of_tiles(slicers)):
            self._add_tiles(data, group, accumulator, classification)
        result = accumulator.result()
        if not accumulator.is_finite:
            raise RuntimeError(NOT_FINITE)
        return result

    def _groups_of_tiles(self, slicers: Iterable[tuple[slice | int, ...]]) -> list[list[tuple[slice | int, ...]]]:
        """Tiles that go through the network together."""
        return grouped_tiles(slicers, self._tiles_at_once(), by_rows=self.device.type == "cpu")  # there also in parts of the rows

    def _with_progress(self, groups: Sequence[list]) -> Iterator[list]:
        """Groups of tiles with a progress bar."""
        if not self.allow_tqdm:  # also a bar that is not shown takes its time, which counts for small images
            yield from groups
            return
        with tqdm(total=sum(map(len, groups)), desc="tiles", leave=False) as progress:
            for group in groups:
                yield group
                progress.update(len(group))

    def _tiles_on_device(self, data: torch.Tensor, group: Sequence[tuple[slice | int, ...]]) -> torch.Tensor:
        """A batch ``(tiles, C, *tile)``."""
        # Contiguous, or a compiled network would be compiled again for every size of image.
        tiles = [data[slicer][None].to(self.device) for slicer in group]
        return tiles[0].contiguous() if len(tiles) == 1 else torch.cat(tiles)

    def _add_tiles(
        self,
        data: torch.Tensor,
        group: Sequence[tuple[slice | int, ...]],
        accumulator: TileAccumulator | RollingAccumulator,
        classification: CaseClassification | None,
    ) -> None:
        """Predict some tiles together; their logits go into the accumulator, their class votes into ``classification``."""
        if len(group) > 1 and self._patches_one_by_one:
            for slicer in group:
                self._add_tiles(data, [slicer], accumulator, classification)
            return
        tiles = self._tiles_on_device(data, group)
        if classification is None:
            segmentation, classes = self._internal_maybe_mirror_and_predict(tiles), {}
        else:
            output = self._mirrored_output(tiles, with_classes=True)
            segmentation, classes = output.segmentation, output.classification
        for index, (slicer, logits) in enumerate(zip(group, segmentation, strict=True)):
            logits = logits.to(accumulator.device)
            if classification is not None:
                votes = {name: values[:, index] for name, values in classes.items()}
                classification.add_tile(votes, logits, accumulator.tile_weights)
            accumulator.add(logits, slicer)

    @torch.inference_mode()
    def _classify_tiles(self, data: torch.Tensor, slicers: Sequence[tuple[slice | int, ...]], classification: CaseClassification) -> None:
        """Class votes of all tiles without the decoder."""
        for group in self._with_progress(self._groups_of_tiles(slicers)):
            tiles = self._tiles_on_device(data, group)
            classes = self._if_memory_suffices(partial(self._classes_of_copies, tiles))
            for index in range(len(group)):
                classification.add_tile({name: values[:, index] for name, values in classes.items()}, None, None)

    def _classes_of_copies(self, tiles: torch.Tensor, at_once: int) -> dict[str, torch.Tensor]:
        """Class logits ``(copies, tiles, num_logits)`` by task; ``at_once``: see :meth:`_patches_at_once`."""
        if len(tiles) > at_once:
            outputs = [self._classes_of_copies(tile, at_once) for tile in tiles.split(1)]
            return {name: torch.cat([output[name] for output in outputs], 1) for name in outputs[0]}
        outputs = [self._forward(batch, segmentation=False) for _, batch in self._batches_of_copies(tiles, at_once)]
        return {name: torch.cat([output[name].unflatten(0, (-1, len(tiles))) for output in outputs]) for name in outputs[0]}

    def _tile_weights(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """Weight of every voxel of a tile; None if all count the same."""
        if not self.use_gaussian:
            return None
        return compute_gaussian(
            tuple(self.configuration_manager.patch_size),
            sigma_scale=1.0 / 8,
            value_scaling_factor=GAUSSIAN_PEAK,
            dtype=dtype,
            device=device,
        )

    def _mirror_combinations(self) -> list[tuple[int, ...]]:
        """Sets of axes of a batch to flip, without the empty one."""
        return mirror_combinations(self.allowed_mirroring_axes) if self.use_mirroring else []

    @torch.inference_mode()
    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        """Segmentation logits of tiles ``(tiles, C, *tile)``, averaged over their mirrored copies."""
        return self._mirrored_output(x, with_classes=False).segmentation

    def _mirrored_output(self, x: torch.Tensor, with_classes: bool) -> JointOutput:
        """Averaged segmentation logits ``(tiles, heads, *tile)``; class logits ``(copies, tiles, num_logits)`` of every copy."""
        return self._if_memory_suffices(partial(self._mean_of_copies, x, with_classes))

    def _mean_of_copies(self, x: torch.Tensor, with_classes: bool, at_once: int) -> JointOutput:
        """The same; ``at_once``: see :meth:`_patches_at_once`."""
        if len(x) > at_once:
            outputs = [self._mean_of_copies(tile, with_classes, at_once) for tile in x.split(1)]
            classes = {name: torch.cat([output.classification[name] for output in outputs], 1) for name in outputs[0].classification}
            return JointOutput(torch.cat([output.segmentation for output in outputs]), classes)
        logits: torch.Tensor | None = None
        classes: dict[str, list[torch.Tensor]] = {}
        copies = 0
        for mirrorings, batch in self._batches_of_copies(x, at_once):
            output = self._network_output(batch, with_classes)
            for axes, copy in zip(mirrorings, output.segmentation.split(len(x)), strict=True):
                copy = _flipped(copy, axes)
                copies += 1
                if logits is None:
                    # Copies are summed in float32 too, except where the reference's float16 is asked for.
                    logits = copy if half_accumulation_requested() else copy.float()
                    if logits.data_ptr() == x.data_ptr():  # a network that hands its input through: what follows works in place
                        logits = logits.clone()
                else:
                    logits += copy
            for name, values in output.classification.items():
                classes.setdefault(name, []).append(values.unflatten(0, (-1, len(x))))
        if copies > 1:
            logits /= copies
        return JointOutput(logits, {name: torch.cat(values) for name, values in classes.items()})

    def _batches_of_copies(self, x: torch.Tensor, at_once: int) -> Iterator[tuple[Sequence[tuple[int, ...]], torch.Tensor]]:
        """Mirrored copies of tiles, so many patches in a batch: the axes of each copy, and the batch, copy after copy."""
        mirrorings = [(), *self._mirror_combinations()]
        step = at_once // len(x)
        for start in range(0, len(mirrorings), step):
            chosen = mirrorings[start : start + step]
            copies = [_flipped(x, axes) for axes in chosen]
            yield chosen, torch.cat(copies) if len(copies) > 1 else copies[0]

    def _if_memory_suffices(self, work: Callable[[int], Any]) -> Any:
        """What ``work`` makes with several patches at once, or one by one where the device has no memory for them, from then on."""
        at_once = self._patches_at_once()
        try:
            return work(at_once)
        except RuntimeError as error:
            if at_once == 1 or not _is_out_of_memory(error):
                raise
        print("The device's memory does not hold several patches at once; from now on they go through the network one by one.")
        self._patches_one_by_one = True
        empty_cache(self.device)  # outside the handler, which keeps the failed attempt's tensors alive
        return work(1)

    def _patches_at_once(self) -> int:
        """How many tiles and mirrored copies go through the network together; a power of two, as is the number of copies."""
        if self._patches_one_by_one:
            return 1
        if self.device.type == "cuda":  # at most as many as in a batch of the plans, whose training takes several times the memory
            return 1 << (max(1, self.configuration_manager.batch_size).bit_length() - 1)
        voxels = math.prod(self.configuration_manager.patch_size)
        if self.device.type != "cpu" or voxels > PAIRED_TILE_VOXELS:  # of large tiles a second copy costs too much memory
            return 1
        return 4 if voxels <= SMALL_TILE_VOXELS else 2  # on the CPU torch has slow convolutions for single images with few channels

    def _tiles_at_once(self) -> int:
        """Tiles that go through the network together: as many as have room with all their copies."""
        as_written = getattr(self._internal_maybe_mirror_and_predict, "__func__", None) is MIRROR_AND_PREDICT_AS_WRITTEN
        # A user's own method knows single tiles; a network would be compiled again for what fills no group.
        if not as_written or is_compiled(self.network):
            return 1
        tiles = max(1, self._patches_at_once() // (1 + len(self._mirror_combinations())))
        voxels = math.prod(self.configuration_manager.patch_size)
        logits = 4 * tiles * voxels * self.label_manager.num_segmentation_heads
        return tiles if self.device.type == "cuda" or (voxels <= JOINED_TILE_VOXELS and logits <= JOINED_LOGITS_BYTES) else 1

    def _network_output(self, x: torch.Tensor, with_classes: bool) -> JointOutput:
        """One forward pass; heads only run where classes are wanted, and under deep supervision the finest output counts."""
        heads_are_idle = not with_classes and self._joint_network() is not None
        output = as_joint_output(self._forward(x, classification=False) if heads_are_idle else self._forward(x))
        segmentation = output.segmentation
        return JointOutput(segmentation[0] if isinstance(segmentation, (list, tuple)) else segmentation, output.classification)

    def _forward(self, x: torch.Tensor, **parts: bool) -> Any:
        """What the network says about ``x``; a failure of the compiler is reported, and the prediction goes on without it."""
        try:
            return self.network(x, **parts)
        except Exception as error:
            if not is_compiled(self.network) or not is_compiler_error(error):
                raise
            print(f"torch.compile failed, the prediction goes on without it. Reason: {type(error).__name__}: {error}")
        self.network = unwrapped_network(self.network)  # outside the handler, which keeps the tensors of the failed attempt alive
        return self.network(x, **parts)


# Kept here, so that methods that are replaced in the class itself are noticed too.
MIRROR_AND_PREDICT_AS_WRITTEN = nnUNetPredictor._internal_maybe_mirror_and_predict
METHODS_AS_WRITTEN = {name: vars(nnUNetPredictor)[name] for name in METHODS_OF_WHOLE_IMAGES}


def _flipped(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """The tensor mirrored along some axes; without any, the tensor itself."""
    return torch.flip(x, axes) if axes else x


def _with_absolute_paths(files: Sequence[str], output_file: str, previous: str | None, identifier: str) -> InputCase:
    """A case for workers, which run in folders of their own."""
    return InputCase(
        identifier=identifier,
        image=[os.path.abspath(file) for file in files],
        previous_segmentation=previous and os.path.abspath(previous),
        output_file_truncated=os.path.abspath(output_file),
    )


def _identifier_of(item: Mapping[str, Any], index: int) -> str:
    """Name of a case for messages and the table."""
    output_file = item.get("ofile")
    return item.get("identifier") or (os.path.basename(output_file) if output_file else f"case {index}")


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device ran out of memory; other errors would only come again on the CPU."""
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(sign in message for sign in OUT_OF_MEMORY_SIGNS)


def predict_entry_point(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_predict``; lives in ``nnunetv2.cli.predict``."""
    from nnunetv2.cli.predict import predict_entry

    predict_entry(argv)


def predict_entry_point_modelfolder(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_predict_from_modelfolder``; lives in ``nnunetv2.cli.predict``."""
    from nnunetv2.cli.predict import predict_modelfolder_entry

    predict_modelfolder_entry(argv)

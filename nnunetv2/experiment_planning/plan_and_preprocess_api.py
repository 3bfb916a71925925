"""The stages before training as Python functions: fingerprint, plans, preprocessed cases; for one dataset or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nnunetv2
from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.verify_dataset_integrity import check_files_of_cases, verify_dataset_integrity
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.case_records import records_of_cases
from nnunetv2.preprocessing.settings import changed_settings, preprocessing_settings, read_settings, write_settings
from nnunetv2.scheduling import LOCAL
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.default_n_proc_DA import usable_cpus
from nnunetv2.utilities.file_io import copy_file, load_json
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.classification_labels import copy_label_tables, find_label_problems
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager, check_plans_fit
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

if TYPE_CHECKING:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
# 3d_fullres cases are the largest in memory.
DEFAULT_PROCESSES = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}
DEFAULT_PROCESSES_OTHERWISE = 4


# Fingerprint.


def extract_fingerprint_dataset(
    dataset_id: int | str,
    fingerprint_extractor_class: type[DatasetFingerprintExtractor] = DatasetFingerprintExtractor,
    num_processes: int | None = default_num_processes,
    check_dataset_integrity: bool = False,
    clean: bool = True,
    verbose: bool = True,
    show_progress_bar: bool = True,
    *,
    scheduler: str = LOCAL,
) -> dict[str, Any]:
    """Fingerprint of one dataset.

    Args:
        dataset_id: Id or name of a dataset below nnUNet_raw.
        fingerprint_extractor_class: Class that does it.
        num_processes: Cases read at the same time; None: as many as CPUs and memory carry.
        check_dataset_integrity: Check every file of the dataset before.
        clean: Compute it again where it exists.
        verbose: Say more while working.
        show_progress_bar: Off for log files.
        scheduler: ``"local"``, or the address of a Dask scheduler whose workers read the cases.

    Returns:
        The content of dataset_fingerprint.json.
    """
    dataset_name = maybe_convert_to_dataset_name(dataset_id)
    print(dataset_name)
    raw_folder = os.path.join(nnUNet_raw, dataset_name)
    nnUNet_preprocessed.require()  # rather now than after every file was read
    most_processes = min(default_num_processes, usable_cpus()) if num_processes is None else num_processes
    if check_dataset_integrity:
        verify_dataset_integrity(raw_folder, most_processes)
    extractor = fingerprint_extractor_class(dataset_id, most_processes, verbose=verbose)
    extractor.show_progress_bar = show_progress_bar
    extractor.fit_processes, extractor.scheduler = num_processes is None, scheduler
    if not check_dataset_integrity:
        check_files_of_cases(raw_folder, extractor.dataset_json)
        check_label_tables(raw_folder, extractor.dataset_json, list(extractor.dataset))
    return extractor.run(overwrite_existing=clean)


def extract_fingerprints(
    dataset_ids: Sequence[int | str],
    fingerprint_extractor_class_name: str = "DatasetFingerprintExtractor",
    num_processes: int | None = default_num_processes,
    check_dataset_integrity: bool = False,
    clean: bool = True,
    verbose: bool = True,
    show_progress_bar: bool = True,
    *,
    scheduler: str = LOCAL,
) -> None:
    """Fingerprints of several datasets, see `extract_fingerprint_dataset`."""
    extractor_class = find_planning_class(fingerprint_extractor_class_name, DatasetFingerprintExtractor)
    for dataset_id in dataset_ids:
        extract_fingerprint_dataset(
            dataset_id, extractor_class, num_processes, check_dataset_integrity, clean, verbose, show_progress_bar, scheduler=scheduler
        )


# Plans.


def plan_experiment_dataset(
    dataset_id: int | str,
    experiment_planner_class: type[ExperimentPlanner] = ExperimentPlanner,
    gpu_memory_target_in_gb: float | None = None,
    preprocess_class_name: str = "DefaultPreprocessor",
    overwrite_target_spacing: Sequence[float] | None = None,
    overwrite_plans_name: str | None = None,
) -> tuple[dict, str]:
    """Plans of one dataset.

    Args:
        dataset_id: Id or name of a dataset below nnUNet_raw.
        experiment_planner_class: Class that does it.
        gpu_memory_target_in_gb: None for the planner's own.
        preprocess_class_name: Preprocessor that the plans name.
        overwrite_target_spacing: Voxel size in mm of 3d_fullres, in the reader's axis order; None for the planner's choice.
        overwrite_plans_name: None for the planner's own.

    Returns:
        The plans and their name.
    """
    chosen: dict[str, Any] = {}
    if overwrite_plans_name is not None:
        chosen["plans_name"] = overwrite_plans_name
    if gpu_memory_target_in_gb is not None:
        chosen["gpu_memory_target_in_gb"] = gpu_memory_target_in_gb
    spacing = None if overwrite_target_spacing is None else [float(s) for s in overwrite_target_spacing]
    planner = experiment_planner_class(
        dataset_id, preprocessor_name=preprocess_class_name, overwrite_target_spacing=spacing, suppress_transpose=False, **chosen
    )
    plans = planner.plan_experiment()
    return plans, planner.plans_identifier


def plan_experiments(
    dataset_ids: Sequence[int | str],
    experiment_planner_class_name: str = "ExperimentPlanner",
    gpu_memory_target_in_gb: float | None = None,
    preprocess_class_name: str = "DefaultPreprocessor",
    overwrite_target_spacing: Sequence[float] | None = None,
    overwrite_plans_name: str | None = None,
) -> str | None:
    """Plans of several datasets, see `plan_experiment_dataset`.

    Returns:
        Name of the plans of the last dataset; a planner gives all datasets the same.
    """
    planner_class = find_planning_class(experiment_planner_class_name, ExperimentPlanner)
    plans_identifier = None
    for dataset_id in dataset_ids:
        _, plans_identifier = plan_experiment_dataset(
            dataset_id, planner_class, gpu_memory_target_in_gb, preprocess_class_name, overwrite_target_spacing, overwrite_plans_name
        )
    return plans_identifier


# Preprocessing.


def preprocess_dataset(
    dataset_id: int | str,
    plans_identifier: str = "nnUNetPlans",
    configurations: Sequence[str] = DEFAULT_CONFIGURATIONS,
    num_processes: int | Sequence[int] | None = (8, 4, 8),
    verbose: bool = False,
    show_progress_bar: bool = True,
    *,
    start_over: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    scheduler: str = LOCAL,
) -> None:
    """Preprocess one dataset, and copy its segmentations for the validation.

    Cases that are there already are kept if their raw files, the plans and the code are the same.

    Args:
        dataset_id: Id or name of a dataset below nnUNet_raw.
        plans_identifier: Name of its plans.
        configurations: Those that the plans lack are skipped.
        num_processes: Cases at the same time; one number, or one for each configuration; None: as many as CPUs and memory carry.
        verbose: Say more while working.
        show_progress_bar: Off for log files.
        start_over: Make every case again.
        num_parts: Over how many runs the cases are spread, at the same time or not.
        part_id: Which of them this is, from 0.
        scheduler: ``"local"``, or the address of a Dask scheduler whose workers preprocess the cases.

    Raises:
        FileNotFoundError: If the plans do not exist.
        ValueError: If the plans belong to another dataset, or have none of the configurations, or there is no such part.
    """
    if num_parts < 1 or not 0 <= part_id < num_parts:
        raise ValueError(f"part_id is {part_id} and num_parts {num_parts}; parts are counted from 0 to num_parts - 1.")
    processes = processes_by_configuration(configurations, default_processes(configurations) if num_processes is None else num_processes)
    dataset_name = maybe_convert_to_dataset_name(dataset_id)
    raw_folder = os.path.join(nnUNet_raw, dataset_name)
    preprocessed_folder = os.path.join(nnUNet_preprocessed, dataset_name)
    plans_file = os.path.join(preprocessed_folder, plans_identifier + ".json")
    if not os.path.isfile(plans_file):
        raise FileNotFoundError(
            f"{plans_file} does not exist. Plan first, nnUNetv2_plan_experiment -d {dataset_id}, or give the name of existing plans."
        )
    plans_manager = PlansManager(plans_file)
    dataset_json = load_json(os.path.join(preprocessed_folder, "dataset.json"))
    check_files_of_cases(raw_folder, dataset_json)
    dataset = get_filenames_of_train_images_and_targets(raw_folder, dataset_json)

    print(f"Preprocessing dataset {dataset_name}")
    for configuration in processes:
        if configuration not in plans_manager.available_configurations:
            print(f"INFO: Configuration {configuration} not found in plans file {plans_identifier}.json of {dataset_name}. Skipping.")
    present = [name for name in processes if name in plans_manager.available_configurations]
    if not present:
        raise ValueError(
            f"{plans_file} has none of the configurations {list(processes)}, only {list(plans_manager.available_configurations)}."
        )
    check_plans_fit(plans_manager, dataset_name, dataset_json, present)
    copy_label_tables(raw_folder, preprocessed_folder, dataset_json, list(dataset))
    for configuration in present:
        preprocessor = plans_manager.get_configuration(configuration).preprocessor_class(verbose=verbose)
        preprocessor.show_progress_bar = show_progress_bar
        preprocessor.start_over, preprocessor.fit_processes = start_over, num_processes is None
        preprocessor.num_parts, preprocessor.part_id, preprocessor.scheduler = num_parts, part_id, scheduler
        preprocess_configuration(preprocessor, dataset_name, plans_manager, plans_identifier, configuration, processes[configuration])
    copy_segmentations(dataset, preprocessed_folder, dataset_json["file_ending"])


def preprocess(
    dataset_ids: Sequence[int | str],
    plans_identifier: str = "nnUNetPlans",
    configurations: Sequence[str] = DEFAULT_CONFIGURATIONS,
    num_processes: int | Sequence[int] | None = (8, 4, 8),
    verbose: bool = False,
    show_progress_bar: bool = True,
    **options: Any,
) -> None:
    """Preprocess several datasets, see `preprocess_dataset`, which takes the `options`."""
    for dataset_id in dataset_ids:
        preprocess_dataset(dataset_id, plans_identifier, configurations, num_processes, verbose, show_progress_bar, **options)


def default_processes(configurations: Sequence[str]) -> list[int]:
    """Processes for each configuration where the user gives none."""
    return [DEFAULT_PROCESSES.get(configuration, DEFAULT_PROCESSES_OTHERWISE) for configuration in configurations]


# Helpers.


def preprocess_configuration(
    preprocessor: DefaultPreprocessor,
    dataset_name: str,
    plans_manager: PlansManager,
    plans_identifier: str,
    configuration: str,
    num_processes: int,
) -> None:
    """One configuration; says if its folder held cases that were made differently, and notes how they are made now."""
    print(f"Configuration: {configuration}...")
    configuration_manager = plans_manager.get_configuration(configuration)
    preprocessed_folder = os.path.join(nnUNet_preprocessed, dataset_name)
    settings = preprocessing_settings(plans_manager, configuration_manager)
    previous = read_settings(preprocessed_folder, configuration_manager)
    changed = [] if previous is None else changed_settings(previous, settings)
    if changed:
        print(
            f"WARNING: {configuration_manager.data_identifier} was preprocessed with other settings ({', '.join(changed)}) for "
            f"{previous.get('plans_name')}. It is replaced now; to keep both, plan with -overwrite_plans_name and a planner "
            "that does not share this folder."
        )
    # An interrupted run leaves a mixture of old and new cases, or not all of them; training refuses those.
    write_settings(preprocessed_folder, configuration_manager, settings, is_complete=False)
    preprocessor.run(dataset_name, configuration, plans_identifier, num_processes=num_processes)
    missing = _cases_of_other_parts(preprocessor, dataset_name, plans_manager, configuration_manager) if preprocessor.num_parts > 1 else 0
    if missing:
        # The folder is noted as incomplete already; another part may have completed it since it was looked at, and said so.
        print(f"Part {preprocessor.part_id} of {preprocessor.num_parts} is done; {missing} cases of other parts are not there yet.")
    else:
        write_settings(preprocessed_folder, configuration_manager, settings, is_complete=True)


def _cases_of_other_parts(
    preprocessor: DefaultPreprocessor, dataset_name: str, plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> int:
    """How many cases of the dataset are not preprocessed with the present settings; to be called when a part has ended."""
    preprocessed_folder = os.path.join(nnUNet_preprocessed, dataset_name)
    dataset_json = load_json(os.path.join(preprocessed_folder, "dataset.json"))
    dataset = get_filenames_of_train_images_and_targets(os.path.join(nnUNet_raw, dataset_name), dataset_json)
    output_folder = os.path.join(preprocessed_folder, configuration_manager.data_identifier)
    records = records_of_cases(preprocessor, output_folder, dataset, plans_manager, configuration_manager, dataset_json)
    own = list(records.values())[preprocessor.part_id :: preprocessor.num_parts]
    if own and not any(record.is_made() for record in own):
        return 0  # a run() of the user's own, which knows neither records nor parts, has made all cases
    return sum(not record.is_made() for record in records.values())


def processes_by_configuration(configurations: Sequence[str], num_processes: int | Sequence[int]) -> dict[str, int]:
    """Number of processes of every configuration, each configuration once."""
    numbers = [num_processes] if isinstance(num_processes, int) else list(num_processes)
    if len(numbers) == 1:
        numbers = numbers * len(configurations)
    if len(numbers) != len(configurations):
        raise ValueError(
            f"{len(numbers)} numbers of processes {numbers} for {len(configurations)} configurations {list(configurations)}. "
            "Give one number, or one for each configuration."
        )
    return dict(zip(configurations, numbers, strict=True))


def check_label_tables(raw_folder: str, dataset_json: dict[str, Any], identifiers: Sequence[str]) -> None:
    """Print warnings about case-level labels; stop on errors, all of them in one message."""
    errors, label_warnings = find_label_problems(raw_folder, dataset_json, identifiers)
    for warning in label_warnings:
        print(f"WARNING: {warning}")
    if errors:
        raise ValueError(f"The case-level labels in {raw_folder} have {len(errors)} error(s):\n" + "\n".join(f"- {e}" for e in errors))


def copy_segmentations(dataset: dict[str, dict[str, Any]], preprocessed_folder: str, file_ending: str) -> None:
    """Copy the raw segmentations to gt_segmentations, those that are newer or of another size."""
    target_folder = os.path.join(preprocessed_folder, "gt_segmentations")
    os.makedirs(target_folder, exist_ok=True)
    for identifier, files in dataset.items():
        source, target = files["label"], os.path.join(target_folder, identifier + file_ending)
        if not os.path.isfile(target) or is_outdated(source, target):
            copy_file(source, target)


def is_outdated(source: str, target: str) -> bool:
    """Whether a copy is older than its source or has another size."""
    original, copy = os.stat(source), os.stat(target)
    return original.st_mtime > copy.st_mtime or original.st_size != copy.st_size


def find_planning_class(name: str, base_class: type) -> type:
    """Class of this name below `nnunetv2.experiment_planning`."""
    folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
    found = recursive_find_python_class(folder, name, current_module="nnunetv2.experiment_planning")
    if found is None:
        raise RuntimeError(f"No class {name} below {folder}. Check the spelling; the default is {base_class.__name__}.")
    if not (isinstance(found, type) and issubclass(found, base_class)):
        raise RuntimeError(f"{name} in {found.__module__} is no {base_class.__name__}.")
    return found

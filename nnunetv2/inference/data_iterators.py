"""Reads and preprocesses the next cases while the network works on the current one.

Many or large cases are prepared in spawned worker processes, each one case ahead; small jobs run in a thread of the calling process,
because a worker takes longer to start than they take. The workers do not import torch. Cases come in the order in which they
were given. A case that cannot be read does not stop the others: it is reported after the last one.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
from batchgenerators.dataloading.data_loader import DataLoader

from nnunetv2.imageio.label_values import check_finite
from nnunetv2.scheduling import CaseErrors, CaseFailure, WorkerDied
from nnunetv2.utilities.machine import cause_of_death, count_of_memory_kills

if TYPE_CHECKING:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

LENGTH_OF_CHANNEL_SUFFIX = len("_0000")
# Below this many bytes of image files, all cases together are read and preprocessed in about the time that workers take to start.
SMALL_JOB_BYTES = 16 * 1024**2
TRANSFER_BYTES = 16 * 1024**2  # arrays travel between processes in pieces of this size, without a second copy
SECONDS_TO_END = 5


@dataclass(frozen=True, kw_only=True)
class PreprocessingSettings:
    """What every case needs besides its images; goes to the workers once."""

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict
    verbose: bool = False

    @property
    def needs_previous_stage(self) -> bool:
        """Whether the network expects the segmentation of a smaller network as further channels."""
        return self.configuration_manager.previous_stage_name is not None


@dataclass(frozen=True, kw_only=True)
class InputCase:
    """One case to be predicted, as files or as arrays."""

    identifier: str
    image: list[str] | np.ndarray  # one file per channel, or (C, X, Y, Z)
    properties: dict | None = None  # of an image given as array
    previous_segmentation: str | np.ndarray | None = None  # file, or (X, Y, Z) or (1, X, Y, Z)
    output_file_truncated: str | None = None


def case_identifier(image_files: Sequence[str], file_ending: str) -> str:
    """``case_001`` of ``folder/case_001_0000.nii.gz``."""
    return os.path.basename(image_files[0])[: -(len(file_ending) + LENGTH_OF_CHANNEL_SUFFIX)]


def preprocess_input_case(
    case: InputCase, settings: PreprocessingSettings, preprocessor: DefaultPreprocessor | None = None
) -> tuple[np.ndarray, dict]:
    """The image as the network wants it and what is needed to undo the preprocessing.

    Returns:
        ``(C, X, Y, Z)`` float32 on the grid of the configuration, with the previous stage's labels one-hot below the image channels
        for cascades, and the properties.

    Raises:
        ValueError: If the number of channels is wrong or the previous stage is missing.
    """
    _check_previous_stage(case, settings)
    plans_manager, configuration_manager, dataset_json = settings.plans_manager, settings.configuration_manager, settings.dataset_json
    if preprocessor is None:
        preprocessor = configuration_manager.preprocessor_class(verbose=settings.verbose)
    if isinstance(case.image, np.ndarray):
        _check_number_of_channels(case.identifier, len(case.image), dataset_json)
        check_finite(case.image, case.identifier)
        previous = case.previous_segmentation
        if previous is not None and previous.ndim == case.image.ndim - 1:
            previous = previous[None]
        data, segmentation, properties = preprocessor.run_case_npy(
            case.image, previous, dict(case.properties or {}), plans_manager, configuration_manager, dataset_json
        )
    else:
        if len(case.image) > _number_of_channels(dataset_json):  # fewer files may hold several channels each
            _check_number_of_channels(case.identifier, len(case.image), dataset_json)
        data, segmentation, properties = preprocessor.run_case(
            case.image, case.previous_segmentation, plans_manager, configuration_manager, dataset_json
        )
        _check_number_of_channels(case.identifier, len(data), dataset_json)
    if case.previous_segmentation is not None:
        data = _with_previous_stage(data, segmentation, plans_manager, dataset_json)
    return np.ascontiguousarray(data, dtype=np.float32), properties


def _number_of_channels(dataset_json: dict) -> int:
    """Channels of the images that the model was trained on."""
    return len(dataset_json.get("channel_names", dataset_json.get("modality", {})))


def _check_number_of_channels(identifier: str, found: int, dataset_json: dict) -> None:
    """Raise if a case has not the channels that the network was trained on."""
    names = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    if found != len(names):
        listed = ", ".join(f"_{int(index):04d} {name}" if str(index).isdigit() else str(name) for index, name in names.items())
        raise ValueError(
            f"Case {identifier}: found {found} channel{'s' if found != 1 else ''}, but the model was trained on {len(names)} ({listed})."
        )


def _check_previous_stage(case: InputCase, settings: PreprocessingSettings) -> None:
    """Raise if a cascade lacks its first stage, or if there is one that nobody asked for."""
    if settings.needs_previous_stage and case.previous_segmentation is None:
        raise ValueError(
            f"Case {case.identifier}: this configuration is the second stage of a cascade and needs the segmentation of "
            f"{settings.configuration_manager.previous_stage_name}. Predict that first."
        )
    if not settings.needs_previous_stage and case.previous_segmentation is not None:
        raise ValueError(f"Case {case.identifier}: a segmentation of a previous stage is given, but this configuration has none.")


def _with_previous_stage(data: np.ndarray, segmentation: np.ndarray, plans_manager: PlansManager, dataset_json: dict) -> np.ndarray:
    """Stack the labels of the previous stage, one channel each, below the image."""
    labels = plans_manager.get_label_manager(dataset_json).foreground_labels
    return np.concatenate([data, np.stack([segmentation[0] == label for label in labels]).astype(np.float32)])


# --- iterators -------------------------------------------------------------------------------------------------------------------


def preprocessed_cases(
    cases: Sequence[InputCase], settings: PreprocessingSettings, num_processes: int, *, pin_memory: bool = False, in_thread: bool = False
) -> Iterator[dict[str, Any]]:
    """Preprocess ahead and yield case by case, in order.

    Args:
        cases: What to preprocess.
        settings: For all of them.
        num_processes: Workers; 0: this process.
        pin_memory: Yield page-locked tensors.
        in_thread: In this process, prepare each case in a thread while the one before is used.

    Yields:
        ``{"data": tensor, "data_properties": dict, "ofile": str | None, "identifier": str}``, or for a case that failed
        ``{"failure": CaseFailure, "ofile": ..., "identifier": ...}``.
    """
    num_processes = min(num_processes, len(cases))
    if num_processes >= 1 and len(cases) > 1:
        finished = _in_workers(cases, settings, num_processes)
    else:
        finished = _in_this_process(cases, settings)
        if in_thread and len(cases) > 1:
            finished = _one_ahead(finished)
    for case, outcome in zip(cases, finished, strict=True):
        item = {"ofile": case.output_file_truncated, "identifier": case.identifier}
        if isinstance(outcome, CaseFailure):
            yield item | {"failure": outcome}
        else:
            yield item | {"data": _as_tensor(outcome[0], pin_memory), "data_properties": outcome[1]}


def worthwhile_processes(image_files: Sequence[Sequence[str]], num_processes: int) -> int:
    """The number of workers for these cases: none where everything together is read faster than workers start."""
    total = sum(os.path.getsize(file) for files in image_files for file in files if os.path.isfile(file))
    return 0 if len(image_files) < 2 or total < SMALL_JOB_BYTES else min(num_processes, len(image_files))


def _as_tensor(array: np.ndarray, pin_memory: bool) -> Any:
    """The array as tensor, in page-locked memory where that helps the transfer to a GPU."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pin_memory else tensor


def _in_this_process(cases: Sequence[InputCase], settings: PreprocessingSettings) -> Iterator[tuple[np.ndarray, dict] | CaseFailure]:
    """One case after the other, each when it is asked for."""
    for case in cases:
        try:
            outcome: tuple[np.ndarray, dict] | CaseFailure = preprocess_input_case(case, settings)
        except Exception as error:
            outcome = CaseFailure(case.identifier, error, traceback.format_exc())
        yield outcome
        del outcome  # the consumer's copy alone keeps the array alive


def _one_ahead(outcomes: Iterator[tuple[np.ndarray, dict] | CaseFailure]) -> Iterator[tuple[np.ndarray, dict] | CaseFailure]:
    """The same, but the next one is prepared while the caller works with the last."""
    with ThreadPoolExecutor(1, thread_name_prefix="preprocessing") as executor:
        following = executor.submit(next, outcomes, None)
        while (outcome := following.result()) is not None:
            following = executor.submit(next, outcomes, None)
            yield outcome
            del outcome


def _in_workers(
    cases: Sequence[InputCase], settings: PreprocessingSettings, num_processes: int
) -> Iterator[tuple[np.ndarray, dict] | CaseFailure]:
    """Cases dealt to workers in turn; each worker prepares one case and holds it until it is fetched."""
    workers = [_Worker(settings) for _ in range(num_processes)]
    try:
        for worker, case in zip(workers, cases, strict=False):
            worker.start_case(case)
        for index in range(len(cases)):
            worker = workers[index % num_processes]
            outcome = worker.finish_case()
            if index + num_processes < len(cases):
                worker.start_case(cases[index + num_processes])
            yield outcome
            del outcome
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A spawned process that preprocesses one case at a time; it is replaced when it dies."""

    def __init__(self, settings: PreprocessingSettings) -> None:
        self._settings = settings
        self._case: InputCase | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._memory_kills = count_of_memory_kills()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._settings), daemon=True)
        self._process.start()
        theirs.close()

    def start_case(self, case: InputCase) -> None:
        self._case = case
        try:
            self._connection.send(case)
        except OSError:
            pass  # the worker is gone, which finish_case reports

    def finish_case(self) -> tuple[np.ndarray, dict] | CaseFailure:
        assert self._case is not None
        try:
            header = self._connection.recv()
            if isinstance(header, CaseFailure):
                return CaseFailure(header.identifier, header.error, header.traceback_text)  # pickling lost the error's cause
            shape, properties = header
            return _receive_array(self._connection, shape), properties
        except (EOFError, OSError):
            failure = self._describe_death()
            self.stop()
            self._start()
            return failure

    def _describe_death(self) -> CaseFailure:
        self._process.join(SECONDS_TO_END)
        cause = cause_of_death(self._process.exitcode, self._memory_kills)
        error = WorkerDied(f"the process that preprocessed it was lost ({cause}). If memory is short, use fewer processes (-npp).")
        return CaseFailure(self._case.identifier, error, "")

    def stop(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join(SECONDS_TO_END)


def _serve(connection: Connection, settings: PreprocessingSettings) -> None:
    """Body of a worker: cases in, arrays or failures out, until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the parent, which ends this one
    preprocessor = None
    while True:
        try:
            case = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if preprocessor is None:
                preprocessor = settings.configuration_manager.preprocessor_class(verbose=settings.verbose)
            data, properties = preprocess_input_case(case, settings, preprocessor)
        except Exception as error:
            connection.send(CaseFailure(case.identifier, _picklable(error), traceback.format_exc()))
            continue
        connection.send((data.shape, properties))
        _send_array(connection, data)
        del data


def _picklable(error: Exception) -> Exception:
    """The error itself, or its text where it would not survive the way to the parent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _send_array(connection: Connection, array: np.ndarray) -> None:
    """The bytes of a contiguous float32 array, in pieces."""
    content = memoryview(array).cast("B") if array.size else memoryview(b"")
    for start in range(0, len(content), TRANSFER_BYTES):
        connection.send_bytes(content[start : start + TRANSFER_BYTES])


def _receive_array(connection: Connection, shape: tuple[int, ...]) -> np.ndarray:
    """The other end of :func:`_send_array`."""
    array = np.empty(shape, dtype=np.float32)
    content = memoryview(array).cast("B") if array.size else memoryview(b"")
    received = 0
    while received < len(content):
        received += connection.recv_bytes_into(content[received:])
    return array


# --- nnU-Net's interface to the same ---------------------------------------------------------------------------------------------


def cases_from_files(
    list_of_lists: Sequence[Sequence[str]],
    previous_segmentations: Sequence[str] | None,
    output_files_truncated: Sequence[str | None] | None,
    file_ending: str,
) -> list[InputCase]:
    """Cases of image files, one list of channels each."""
    return [
        InputCase(
            identifier=case_identifier(files, file_ending) if files else f"case {index}",
            image=list(files),
            previous_segmentation=previous_segmentations[index] if previous_segmentations is not None else None,
            output_file_truncated=output_files_truncated[index] if output_files_truncated is not None else None,
        )
        for index, files in enumerate(list_of_lists)
    ]


def cases_from_arrays(
    images: Sequence[np.ndarray],
    previous_segmentations: Sequence[np.ndarray | None] | None,
    properties: Sequence[dict],
    output_files_truncated: Sequence[str | None] | None,
) -> list[InputCase]:
    """Cases of arrays ``(C, X, Y, Z)``."""
    outputs = output_files_truncated if output_files_truncated is not None else [None] * len(images)
    return [
        InputCase(
            identifier=os.path.basename(outputs[index]) if outputs[index] else f"image {index}",
            image=image,
            properties=properties[index],
            previous_segmentation=previous_segmentations[index] if previous_segmentations is not None else None,
            output_file_truncated=outputs[index],
        )
        for index, image in enumerate(images)
    ]


def preprocessing_iterator_fromfiles(
    list_of_lists: list[list[str]],
    list_of_segs_from_prev_stage_files: None | list[str],
    output_filenames_truncated: None | list[str],
    plans_manager: PlansManager,
    dataset_json: dict,
    configuration_manager: ConfigurationManager,
    num_processes: int,
    pin_memory: bool = False,
    verbose: bool = False,
) -> Iterator[dict[str, Any]]:
    """Preprocess cases of files ahead and yield ``{"data", "data_properties", "ofile"}`` in order.

    Raises:
        CaseErrors: After the last case, if some could not be read; those are not yielded.
    """
    cases = cases_from_files(list_of_lists, list_of_segs_from_prev_stage_files, output_filenames_truncated, dataset_json["file_ending"])
    settings = _settings(plans_manager, dataset_json, configuration_manager, verbose)
    yield from _only_readable(cases, settings, num_processes, pin_memory)


def preprocessing_iterator_fromnpy(
    list_of_images: list[np.ndarray],
    list_of_segs_from_prev_stage: list[np.ndarray] | None,
    list_of_image_properties: list[dict],
    truncated_ofnames: list[str] | None,
    plans_manager: PlansManager,
    dataset_json: dict,
    configuration_manager: ConfigurationManager,
    num_processes: int,
    pin_memory: bool = False,
    verbose: bool = False,
) -> Iterator[dict[str, Any]]:
    """Like :func:`preprocessing_iterator_fromfiles` for arrays."""
    cases = cases_from_arrays(list_of_images, list_of_segs_from_prev_stage, list_of_image_properties, truncated_ofnames)
    settings = _settings(plans_manager, dataset_json, configuration_manager, verbose)
    yield from _only_readable(cases, settings, num_processes, pin_memory)


def _settings(
    plans_manager: PlansManager, dataset_json: dict, configuration_manager: ConfigurationManager, verbose: bool = False
) -> PreprocessingSettings:
    """nnU-Net's arguments as one."""
    return PreprocessingSettings(
        plans_manager=plans_manager, configuration_manager=configuration_manager, dataset_json=dataset_json, verbose=verbose
    )


def _only_readable(
    cases: Sequence[InputCase], settings: PreprocessingSettings, num_processes: int, pin_memory: bool
) -> Iterator[dict[str, Any]]:
    """Pass on what is readable, then raise for the rest."""
    failures = []
    for item in preprocessed_cases(cases, settings, num_processes, pin_memory=pin_memory):
        if "failure" in item:
            failures.append(item["failure"])
        else:
            yield item
    if failures:
        raise CaseErrors(failures, len(cases), "reading and preprocessing") from failures[0].error


class _CasesAsLoader(DataLoader):
    """Goes through cases once, in order, as a loader of batchgenerators."""

    def __init__(
        self, cases: list[InputCase], settings: PreprocessingSettings, preprocessor: DefaultPreprocessor | None, num_threads: int
    ) -> None:
        super().__init__(cases, 1, num_threads, seed_for_shuffle=1, return_incomplete=True, shuffle=False, infinite=False)
        self.indices = list(range(len(cases)))
        self._settings = settings
        self._preprocessor = preprocessor

    def generate_train_batch(self) -> dict[str, Any]:
        """The next case as ``{"data", "data_properties", "ofile"}``."""
        case = self._data[self.get_indices()[0]]
        data, properties = preprocess_input_case(case, self._settings, self._preprocessor)
        return {"data": _as_tensor(data, False), "data_properties": properties, "ofile": case.output_file_truncated}


class PreprocessAdapter(_CasesAsLoader):
    """Cases of files as a loader of batchgenerators, for its multithreaded augmenters."""

    def __init__(
        self,
        list_of_lists: list[list[str]],
        list_of_segs_from_prev_stage_files: None | list[str],
        preprocessor: DefaultPreprocessor,
        output_filenames_truncated: None | list[str],
        plans_manager: PlansManager,
        dataset_json: dict,
        configuration_manager: ConfigurationManager,
        num_threads_in_multithreaded: int = 1,
    ) -> None:
        cases = cases_from_files(list_of_lists, list_of_segs_from_prev_stage_files, output_filenames_truncated, dataset_json["file_ending"])
        settings = _settings(plans_manager, dataset_json, configuration_manager)
        super().__init__(cases, settings, preprocessor, num_threads_in_multithreaded)


class PreprocessAdapterFromNpy(_CasesAsLoader):
    """Arrays as a loader of batchgenerators, for its multithreaded augmenters."""

    def __init__(
        self,
        list_of_images: list[np.ndarray],
        list_of_segs_from_prev_stage: list[np.ndarray] | None,
        list_of_image_properties: list[dict],
        truncated_ofnames: list[str] | None,
        plans_manager: PlansManager,
        dataset_json: dict,
        configuration_manager: ConfigurationManager,
        num_threads_in_multithreaded: int = 1,
        verbose: bool = False,
    ) -> None:
        cases = cases_from_arrays(list_of_images, list_of_segs_from_prev_stage, list_of_image_properties, truncated_ofnames)
        settings = _settings(plans_manager, dataset_json, configuration_manager, verbose)
        super().__init__(cases, settings, None, num_threads_in_multithreaded)

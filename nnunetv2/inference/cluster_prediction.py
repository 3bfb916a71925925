"""Prediction on a Dask cluster: every case is a task that reads image files, writes its results and returns its classes.

A worker loads the model with its first case and keeps it. With two threads (``dask worker --nthreads 2``) it reads and writes one case
while the network works on another; the network itself works on one at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2.inference.data_iterators import InputCase, preprocess_input_case
from nnunetv2.scheduling import CaseErrors, CaseFailure, run_per_case
from nnunetv2.utilities.file_io import remove_remains
from nnunetv2.utilities.file_path_utilities import file_state
from nnunetv2.utilities.label_handling.class_calibration import CALIBRATION_FILE

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import ClassificationOptions, ClassificationTable, nnUNetPredictor


@dataclass(frozen=True, kw_only=True)
class PredictorSettings:
    """What a worker needs to make the predictor that the command would use itself."""

    model_folder: str
    folds: tuple[int | str, ...]
    checkpoint_name: str
    classification_heads: str | None
    files: tuple  # states of the model's files: a worker loads a model that was trained again anew
    device: str | None  # None: the best that a worker has
    options: tuple[tuple[str, Any], ...]  # of the predictor's constructor


def predictor_settings(predictor: nnUNetPredictor, device: str | None) -> PredictorSettings:
    """Settings of a predictor that was loaded from a model folder.

    Raises:
        ValueError: If its network comes from elsewhere.
    """
    if predictor.model_source is None:
        raise ValueError("Workers of a cluster load the model from its folder; use initialize_from_trained_model_folder.")
    folder, folds, checkpoint_name, heads = predictor.model_source
    folder = str(Path(folder).resolve())
    names = ["plans.json", "dataset.json", CALIBRATION_FILE, *(f"fold_{fold}/{checkpoint_name}" for fold in folds)]
    names += [path.relative_to(folder).as_posix() for fold in folds for path in sorted(Path(folder).glob(f"fold_{fold}/*.pth"))]
    options = {
        "tile_step_size": predictor.tile_step_size,
        "use_gaussian": predictor.use_gaussian,
        "use_mirroring": predictor.use_mirroring,
        "perform_everything_on_device": predictor.wants_results_on_device,
        "verbose": predictor.verbose,
        "verbose_preprocessing": predictor.verbose_preprocessing,
        "allow_tqdm": False,
    }
    return PredictorSettings(
        model_folder=folder,
        folds=tuple(folds),
        checkpoint_name=checkpoint_name,
        classification_heads=heads,
        files=tuple(file_state(Path(folder) / name) for name in names),
        device=device,
        options=tuple(options.items()),
    )


def predict_on_cluster(
    scheduler: str,
    settings: PredictorSettings,
    cases: Sequence[InputCase],
    save_probabilities: bool,
    options: ClassificationOptions | None,
    table: ClassificationTable | None,
    show_progress: bool,
    result_endings: Sequence[str],
) -> list[None]:
    """Predict cases of files to files.

    Args:
        scheduler: Address of a Dask scheduler, or its scheduler file.
        settings: The model.
        cases: With absolute paths.
        save_probabilities: Also write probabilities.
        options: How classes are predicted; None: not at all.
        table: Receives the classes.
        show_progress: Draw a progress bar.
        result_endings: Of the files of a case.

    Raises:
        CaseErrors: After all others are finished, if some cases failed.
    """

    def settle(index: int, outcome: Mapping[str, np.ndarray] | CaseFailure) -> None:
        if isinstance(outcome, CaseFailure):
            print(f"ERROR: case {outcome}", flush=True)
        if table is not None:
            table.add(cases[index].identifier, outcome.reason if isinstance(outcome, CaseFailure) else outcome)

    try:
        outcomes = run_per_case(
            predict_case_to_files,
            [(settings, case, save_probabilities, options) for case in cases],
            identifiers=[case.identifier for case in cases],
            num_processes=1,
            description="cases",
            show_progress=show_progress,
            on_error="return",
            on_result=settle,
            scheduler=scheduler,
        )
    finally:  # workers may have been killed
        remove_remains(case.output_file_truncated + ending for case in cases for ending in result_endings)
    failures = [outcome for outcome in outcomes if isinstance(outcome, CaseFailure)]
    if failures:
        error = CaseErrors(failures, len(outcomes), "prediction")
        error.results = [None] * len(outcomes)
        raise error from failures[0].error
    return [None] * len(outcomes)


def predict_case_to_files(
    settings: PredictorSettings, case: InputCase, save_probabilities: bool, options: ClassificationOptions | None
) -> dict[str, np.ndarray]:
    """Predict one case in this process and write it; returns class probabilities by task, not calibrated.

    The segmentation is written last and renamed into place, so a case is there as a whole or not at all.
    """
    predictor = _WORKER.predictor(settings)
    data, properties = preprocess_input_case(case, predictor._preprocessing_settings())
    import torch

    with _WORKER.network:
        item = {"data": torch.from_numpy(data), "data_properties": properties, "ofile": case.output_file_truncated}
        result, classes, maps = predictor._predict_item(item, options, save_probabilities)
    if result is not None or maps:
        calibrated = predictor._calibrated(classes, options)
        outcome = predictor._export_or_failure(
            result, properties, case.output_file_truncated, save_probabilities, calibrated, case.identifier, maps
        )
        if isinstance(outcome, CaseFailure):
            raise outcome.error
    return classes


class _Worker:
    """What a worker process keeps between cases."""

    def __init__(self) -> None:
        self.network = threading.Lock()  # one case at a time
        self._loading = threading.Lock()
        self._loaded: tuple[PredictorSettings, nnUNetPredictor] | None = None

    def predictor(self, settings: PredictorSettings) -> nnUNetPredictor:
        """The predictor of these settings; another model is dropped first."""
        with self._loading:
            if self._loaded is None or self._loaded[0] != settings:
                self._loaded = None
                self._loaded = (settings, _load(settings))
            return self._loaded[1]


def _load(settings: PredictorSettings) -> nnUNetPredictor:
    import torch

    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    name = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("This worker has no CUDA device. Start workers on machines with a GPU, or predict with -device cpu.")
    predictor = nnUNetPredictor(device=torch.device("cuda", 0) if name == "cuda" else torch.device(name), **dict(settings.options))
    predictor.initialize_from_trained_model_folder(
        settings.model_folder, settings.folds, settings.checkpoint_name, classification_heads=settings.classification_heads
    )
    return predictor


_WORKER = _Worker()

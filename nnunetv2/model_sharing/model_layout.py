"""The files of a trained model below ``nnUNet_results``: which of them a shared model has, and where each may lie.

::

    DatasetXXX_Name/
        TRAINER__PLANS__CONFIGURATION/
            plans.json  dataset.json  dataset_fingerprint.json  classification_calibration.json
            fold_0/     checkpoint_final.pth  debug.json  progress.png  validation/
            crossval_results_folds_0_1_2_3_4/   plans.json  summary.json  classification.csv  cross_validation.json  postprocessing.pkl
        ensembles/ensemble___MODEL___MODEL___FOLDS/
        inference_information.json  inference_instructions.txt
"""

from __future__ import annotations

import re

from nnunetv2.evaluation.validation_tables import CLASS_SUMMARY_FILE, CROSS_VALIDATION_FILE
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
from nnunetv2.utilities.label_handling.class_calibration import CALIBRATION_FILE

PLANS, DATASET, FINGERPRINT = "plans.json", "dataset.json", "dataset_fingerprint.json"
# Without the last the model predicts other probabilities of classes.
MODEL_FILES = (PLANS, DATASET, FINGERPRINT, CALIBRATION_FILE)
NEEDED_MODEL_FILES = (PLANS, DATASET)
FOLD_FILES = ("progress.png", "network_architecture.pdf")
DEBUG_FILE = "debug.json"
VALIDATION = "validation"
SUMMARIES = ("summary.json", CLASS_SUMMARY_FILE)
CROSSVALIDATION = "crossval_results_folds_"
ENSEMBLES = "ensembles"
POSTPROCESSING = ("postprocessing.pkl", "postprocessing.json")
# Patterns of what is kept of folders that pool folds: scores, tables of classes, which fold every case is from, and what to do with predictions.
POOLED_FILES = (PLANS, *SUMMARIES, "classification*.csv", CROSS_VALIDATION_FILE, *POSTPROCESSING)
INFORMATION = "inference_information.json"
DATASET_FILES = (INFORMATION, "inference_instructions.txt")
PROBABILITY_ENDINGS = (".npz", ".pkl")  # of predictions: large, and of use for ensembles of the same cases only
# What is known about every patient of a training, where it was written into dataset.json.
PRIVATE_KEYS = ("case_labels", "case_groups")

TEXT_ENDINGS = (".json", ".txt", ".csv", ".md")
CHECKPOINT_ENDING, PICKLE_ENDING = ".pth", ".pkl"
_IMAGE_ENDINGS = tuple(sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}))
ALLOWED_ENDINGS = (*TEXT_ENDINGS, CHECKPOINT_ENDING, PICKLE_ENDING, ".npz", ".npy", ".b2nd", ".png", ".pdf", *_IMAGE_ENDINGS)
ALLOWED_NAMES = ("LICENSE", "LICENCE", "NOTICE", "README")
# What archivers and file managers add by themselves; left out without a word about danger.
CLUTTER = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|\._[^/]*$|Thumbs\.db$|desktop\.ini$)")

_DATASET_NAME = re.compile(r"Dataset\d{3}_[^/]+")
_MODEL_NAME = re.compile(r"(?!ensemble)[^/]+__[^/]+__[^/]+")
_FOLD_NAME = re.compile(r"fold_(?:\d+|all)")


def place_of(path: str) -> tuple[str, ...] | None:
    """The part of a shared model that a file belongs to, as path components below ``nnUNet_results``.

    Args:
        path: Of the file, relative to ``nnUNet_results``, with slashes.

    Returns:
        ``(dataset, model)``, ``(dataset, "ensembles", name)``, or ``(dataset, file name)`` for a file that says how to use them; None for
        a file that has no place in a model.
    """
    parts = path.split("/")
    if len(parts) < 2 or not _DATASET_NAME.fullmatch(parts[0]) or not has_allowed_name(parts[-1]):
        return None
    if len(parts) == 2:
        return (parts[0], parts[1]) if parts[1].endswith(TEXT_ENDINGS) or parts[1] in ALLOWED_NAMES else None
    if parts[1] == ENSEMBLES:
        return (parts[0], ENSEMBLES, parts[2]) if len(parts) > 3 and parts[2].startswith("ensemble___") else None
    if not _MODEL_NAME.fullmatch(parts[1]):
        return None
    if parts[-1].endswith(CHECKPOINT_ENDING) and not (len(parts) == 4 and _FOLD_NAME.fullmatch(parts[2])):
        return None
    return parts[0], parts[1]


def has_allowed_name(name: str) -> bool:
    """Whether a file of this name can be part of a model."""
    return name in ALLOWED_NAMES or (name.lower().endswith(ALLOWED_ENDINGS) and not name.startswith("."))

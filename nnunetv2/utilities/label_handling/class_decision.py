"""Which class a vector of probabilities stands for; one rule for predictions, tables and scores."""

from __future__ import annotations

import numpy as np

from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

MULTILABEL_THRESHOLD = 0.5


def predicted_target(task: ClassificationTask, probabilities: np.ndarray) -> int | np.ndarray:
    """The decision of a task, in the form of :meth:`ClassificationTask.parse_cell`.

    Args:
        task: Says whether several classes can be true at once.
        probabilities: ``(K,)``.

    Returns:
        The index of the most probable class (the first of equals); for multilabel float32 ``(K,)``, 1 from a probability of 0.5 on.
    """
    probabilities = np.asarray(probabilities)
    if task.is_multilabel:
        return (probabilities >= MULTILABEL_THRESHOLD).astype(np.float32)
    return int(probabilities.argmax())

"""Loss of case-level classification heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

LABEL_SMOOTHING = 0.05


class ClassificationLoss(nn.Module):
    """By task, the weighted loss of all samples divided by the number of samples whose label is known.

    With several processes the number is that of all of them, and the loss is scaled so that the mean of the processes'
    gradients, which DDP takes, is the gradient of the loss over all samples.

    Args:
        tasks: Tasks by name.
        label_smoothing: Of the multiclass cross-entropy.
        class_weights: By task one factor per class, for ``multiclass`` and ``ordinal``. Computed from the training cases
            alone; not together with class-balanced sampling.
    """

    def __init__(
        self,
        tasks: Mapping[str, ClassificationTask],
        label_smoothing: float = LABEL_SMOOTHING,
        class_weights: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.label_smoothing = label_smoothing
        self.class_weights = {name: torch.as_tensor(weights, dtype=torch.float32) for name, weights in (class_weights or {}).items()}
        for name, weights in self.class_weights.items():
            if name not in self.tasks or self.tasks[name].is_multilabel or len(weights) != self.tasks[name].num_classes:
                raise ValueError(f"Class weights of {name!r}: expected a multiclass or ordinal task and one weight per class.")

    def forward(self, logits: Mapping[str, Tensor], classes: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Loss by task. A task of which nothing is known gets a zero that is connected to its logits.

        Args:
            logits: ``(B, number of logits)`` by task.
            classes: By task ``target`` (``(B,)``, -1 is unknown; multilabel ``(B, K)``, NaN is unknown) and ``weight`` ``(B,)``.
                A task that is missing is unknown.
        """
        names = [name for name in self.tasks if name in logits]
        sums, known = {}, []
        for name in names:
            if name in classes:
                target = classes[name]["target"].to(logits[name].device, non_blocking=True)
                weight = classes[name]["weight"].to(logits[name].device, torch.float32, non_blocking=True)
                losses, is_known = self.sample_losses(name, logits[name].float(), target)
                sums[name] = (losses * weight * is_known).sum()
                known.append(is_known.sum().float())
            else:
                sums[name] = logits[name].float().sum() * 0
                known.append(sums[name].detach())
        if not names:
            return {}
        counts, n_processes = _sum_over_processes(torch.stack(known))
        return {name: sums[name] / count.clamp(min=1) * n_processes for name, count in zip(names, counts, strict=True)}

    def sample_losses(self, name: str, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each sample ``(B,)``, meaningless where the label is unknown, and which labels are known ``(B,)``."""
        task = self.tasks[name]
        # Unknown targets are replaced before the loss: NaN * 0 is NaN.
        if task.is_multilabel:
            is_known = ~target.isnan()
            losses = F.binary_cross_entropy_with_logits(logits, torch.where(is_known, target, 0.0).float(), reduction="none")
            return (losses * is_known).sum(1) / is_known.sum(1).clamp(min=1), is_known.any(1)
        is_known = target >= 0
        target = torch.where(is_known, target, 0).long()
        if task.is_ordinal:
            is_higher = target[:, None] > torch.arange(task.num_logits, device=target.device)
            losses = F.binary_cross_entropy_with_logits(logits, is_higher.float(), reduction="none").mean(1)
        else:
            losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)
        if name in self.class_weights:
            losses = losses * self.class_weights[name].to(losses.device)[target]
        return losses, is_known


def _sum_over_processes(counts: Tensor) -> tuple[Tensor, int]:
    """Sum over all processes of a distributed training, and their number."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts, 1
    counts = counts.clone()
    torch.distributed.all_reduce(counts)
    return counts, torch.distributed.get_world_size()

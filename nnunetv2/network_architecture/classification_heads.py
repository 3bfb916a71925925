"""Case-level classification heads: pooling over encoder features, then a small multilayer perceptron.

A head is ``head(features, segmentation_logits) -> logits``. It is the composition of ``pool``, which makes one vector of the
features, and ``classify``, which makes logits of the vector: averaging the vectors of all tiles of a case and classifying once
is the other way to use the same head.

Heads compute in float32 also under autocast, and draw initial weights and dropout from generators of their own, so that a
segmentation that is trained beside them sees exactly the random numbers that it would see without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.network_architecture.tree_ensemble import TreeEnsemble

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

DROPOUT = 0.3
SLOWEST_RATE = 0.005  # of the running statistics: some two hundred batches
SMALLEST_DEVIATION = 1e-3  # of features that LayerNorm has brought to a scale of 1
LARGEST_DEVIATION = 10.0
MAX_HIDDEN_UNITS = 64  # a few hundred cases do not carry more
LEVELS = ("patch", "case")  # what a head was trained on: logits of patches, or vectors averaged over a case


@dataclass(frozen=True, kw_only=True)
class HeadDescription:
    """Everything needed to build a head again, besides its weights. Stored in the checkpoint."""

    task: ClassificationTask
    pooling: str = "mean_max"  # key of POOLINGS
    stages: tuple[int, ...]  # encoder stages that are pooled, 0 is the finest
    level: str = "patch"  # one of LEVELS
    evidence: PredictedEvidence = PredictedEvidence()  # used by the pooling "evidence"
    # Label values of the structures whose morphometry a head of level "case" sees, and the names of the measures in order.
    structures: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    measures: tuple[str, ...] = ()
    trees: int = 0  # decision trees on the measures

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"Task {self.task.name}: unknown pooling {self.pooling!r}; choose one of {', '.join(POOLINGS)}.")
        if self.level not in LEVELS:
            raise ValueError(f"Task {self.task.name}: unknown level {self.level!r}; expected one of {', '.join(LEVELS)}.")
        if not self.stages or len(set(self.stages)) != len(self.stages) or min(self.stages) < 0:
            raise ValueError(f"Task {self.task.name}: stages must be different encoder stages, counted from 0; got {self.stages}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint; the task itself is stored once, beside the heads."""
        return {
            "pooling": self.pooling,
            "stages": list(self.stages),
            "level": self.level,
            "evidence_channels": list(self.evidence.channels),
            "has_regions": self.evidence.has_regions,
            "structures": {name: list(values) for name, values in self.structures.items()},
            "measures": list(self.measures),
            "trees": self.trees,
        }

    @classmethod
    def from_dict(cls, task: ClassificationTask, values: Mapping[str, Any]) -> HeadDescription:
        """The inverse of :meth:`to_dict`."""
        return cls(
            task=task,
            pooling=values["pooling"],
            stages=tuple(int(stage) for stage in values["stages"]),
            level=values.get("level", "patch"),
            evidence=PredictedEvidence(
                channels=tuple(int(channel) for channel in values.get("evidence_channels", ())),
                has_regions=bool(values.get("has_regions", False)),
            ),
            structures={name: tuple(int(v) for v in label_values) for name, label_values in values.get("structures", {}).items()},
            measures=tuple(values.get("measures", ())),
            trees=int(values.get("trees", 0)),
        )


class ClassificationHead(nn.Module):
    """Pooled encoder features to class logits.

    Args:
        description: What the head predicts and which features it sees.
        feature_channels: Channels of every encoder stage, finest first.
        generator: Source of the initial weights.
        dropout_seed: Seed of the dropout.
    """

    def __init__(
        self, description: HeadDescription, feature_channels: Sequence[int], generator: torch.Generator, dropout_seed: int
    ) -> None:
        super().__init__()
        self.description = description
        channels = stage_channels(description, feature_channels)
        # Constructors of torch layers draw from the global generator; what they drew is replaced below.
        with torch.random.fork_rng(devices=[]):
            self.pooling = POOLINGS[description.pooling](channels, description.evidence)
            widths = self.pooling.widths
            # Means and maxima differ in scale; after InstanceNorm a global mean hardly varies between images, so that what does vary is lost
            # beside the differences of the channels, and a head gives every image the same class for thousands of steps.
            self.norms = nn.ModuleList([nn.LayerNorm(width) for width in widths])
            self.standardization = RunningStandardization(sum(widths))
            hidden_units = min(MAX_HIDDEN_UNITS, sum(widths))
            self.dropout = SeededDropout(DROPOUT, dropout_seed)
            self.hidden = nn.Linear(sum(widths), hidden_units)
            output = OrdinalOutput if description.task.is_ordinal else nn.Linear
            self.output = output(hidden_units, description.task.num_logits)
        for module in self.modules():
            _initialize(module, generator)

    @property
    def needs_segmentation(self) -> bool:
        """Whether the head looks at the segmentation logits."""
        return self.pooling.needs_segmentation

    def forward(self, features: Sequence[Tensor], segmentation_logits: Tensor | None = None) -> Tensor:
        """Logits ``(B, number of logits)`` in float32.

        Args:
            features: Encoder features ``(B, C, *spatial)``, finest first, of all stages.
            segmentation_logits: Logits of the finest output ``(B, C, *spatial)``; no gradient flows into them.
        """
        return self.classify(self.pool(features, segmentation_logits))

    def pool(self, features: Sequence[Tensor], segmentation_logits: Tensor | None = None) -> Tensor:
        """One float32 vector ``(B, sum of widths)`` per sample."""
        with torch.autocast(device_type=features[0].device.type, enabled=False):
            logits = None if segmentation_logits is None else segmentation_logits.detach()
            return self.pooling([features[stage] for stage in self.description.stages], logits)

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits ``(B, number of logits)`` of vectors made by :meth:`pool`."""
        with torch.autocast(device_type=pooled.device.type, enabled=False):
            parts = pooled.float().split(self.pooling.widths, dim=1)
            normalized = torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], dim=1)
            return self.output(F.gelu(self.hidden(self.dropout(self.standardization(normalized)))))


class RunningStandardization(nn.Module):
    """Each feature minus its mean, divided by its standard deviation, over the samples seen lately.

    Not BatchNorm: no sample depends on the others of its batch of two. Statistics are those of the batches before, in training too, and of all
    processes of a distributed training. The first batch of all stays as it is.

    Args:
        width: Number of features.
    """

    not_compiled = ("update",)  # speaks to other processes

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))  # mean of the squared values
        self.register_buffer("seen", torch.zeros(()))  # number of samples

    def forward(self, values: Tensor) -> Tensor:
        """``(B, width)`` to the same shape, bent to stay within +-``LARGEST_DEVIATION``; everywhere with a gradient."""
        deviation = (self.square - self.mean.square()).clamp_min(0).sqrt() + SMALLEST_DEVIATION
        deviations = (values - self.mean) / deviation
        standardized = deviations / (1 + deviations.abs() / LARGEST_DEVIATION)
        if self.training:
            self.update(values.detach())
        return standardized

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Take a batch ``(B, width)`` into the statistics: a plain mean at first, later one that forgets."""
        sums = torch.stack([torch.full_like(values[0], len(values)), values.sum(0), values.square().sum(0)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        # A batch that overflowed in half precision would stay in the statistics for good.
        number = sums[0, 0] * sums.isfinite().all()
        self.seen += number
        rate = (number / self.seen.clamp_min(1)).clamp_min(SLOWEST_RATE) * (number > 0)
        mean, square = sums[1:].nan_to_num(0, 0, 0) / number.clamp_min(1)
        self.mean += rate * (mean - self.mean)
        self.square += rate * (square - self.square)


class MeanMaxPooling(nn.Module):
    """Mean and maximum over the voxels of every stage."""

    needs_segmentation = False

    def __init__(self, channels: Sequence[int], evidence: PredictedEvidence) -> None:
        super().__init__()
        self.widths = [sum(channels), sum(channels)]  # means, maxima

    def forward(self, features: Sequence[Tensor], segmentation_logits: Tensor | None) -> Tensor:
        # dtype= sums half-precision features in float32 without a float32 copy of them
        means = [feature.flatten(2).mean(dim=2, dtype=torch.float32) for feature in features]
        maxima = [feature.flatten(2).amax(dim=2).float() for feature in features]
        return torch.cat(means + maxima, dim=1)


class AttentionPooling(nn.Module):
    """Mean of every stage, weighted by how well a voxel answers the task's learned query."""

    needs_segmentation = False

    def __init__(self, channels: Sequence[int], evidence: PredictedEvidence) -> None:
        super().__init__()
        self.widths = [sum(channels)]
        self.queries = nn.ParameterList([nn.Parameter(torch.zeros(width)) for width in channels])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in channels])

    def forward(self, features: Sequence[Tensor], segmentation_logits: Tensor | None) -> Tensor:
        pooled = []
        for feature, query, norm in zip(features, self.queries, self.norms, strict=True):
            voxels = norm(feature.flatten(2).transpose(1, 2).float())  # (B, voxels, C)
            attention = torch.softmax(voxels @ query / math.sqrt(query.numel()), dim=1)
            pooled.append(torch.einsum("bn,bnc->bc", attention, voxels))
        return torch.cat(pooled, dim=1)


class EvidencePooling(nn.Module):
    """Mean and maximum over the voxels that the segmentation predicts as evidence; over all where it predicts none.

    The prediction is brought to the resolution of a stage as the share of evidence in each of its voxels, so that small
    structures are not lost.
    """

    needs_segmentation = True

    def __init__(self, channels: Sequence[int], evidence: PredictedEvidence) -> None:
        super().__init__()
        self.widths = [sum(channels), sum(channels)]  # means, maxima
        self.evidence = evidence

    def forward(self, features: Sequence[Tensor], segmentation_logits: Tensor | None) -> Tensor:
        if segmentation_logits is None:
            raise ValueError("Evidence pooling needs the segmentation logits.")
        is_evidence = (self.evidence.probability(segmentation_logits) > 0.5).float()
        means, maxima = [], []
        for feature in features:
            share = _average_to(is_evidence, feature.shape[2:]).flatten(2)  # (B, 1, voxels)
            share = torch.where(share.amax(dim=2, keepdim=True) > 0, share, torch.ones_like(share))
            voxels = feature.flatten(2).float()
            means.append((voxels * share).sum(dim=2) / share.sum(dim=2))
            maxima.append(voxels.masked_fill(share == 0, -torch.inf).amax(dim=2))
        return torch.cat(means + maxima, dim=1)


POOLINGS: dict[str, type[nn.Module]] = {"mean_max": MeanMaxPooling, "attention": AttentionPooling, "evidence": EvidencePooling}


class OrdinalOutput(nn.Module):
    """Cumulative logits of ordered classes: logit k is that of "the class is higher than k".

    One score against thresholds that ascend by construction, so the logits descend and no class probability is negative.
    """

    def __init__(self, in_features: int, num_logits: int) -> None:
        super().__init__()
        self.score = nn.Linear(in_features, 1, bias=False)
        # Starting thresholds make all classes equally likely at a score of 0.
        quantiles = torch.arange(1, num_logits + 1) / (num_logits + 1)
        thresholds = torch.logit(quantiles)
        self.first_threshold = nn.Parameter(thresholds[:1].clone())
        self.gaps = nn.Parameter(torch.log(torch.expm1(thresholds.diff())))  # inverse of the softplus below

    def forward(self, hidden: Tensor) -> Tensor:
        steps = torch.cat([self.first_threshold, F.softplus(self.gaps)])
        return self.score(hidden) - steps.cumsum(dim=0)


class SeededDropout(nn.Module):
    """Dropout whose masks come from a generator of its own, on the CPU: the same on every device."""

    def __init__(self, probability: float, seed: int) -> None:
        super().__init__()
        self.probability = probability
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return values
        keep = torch.rand(values.shape, generator=self.generator) >= self.probability
        return values * keep.to(values.device, values.dtype) / (1 - self.probability)

    def __getstate__(self) -> dict[str, Any]:
        # Generators cannot be copied or pickled in every supported torch version.
        return {**self.__dict__, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.generator = torch.Generator()
        self.generator.set_state(state["generator"])


class CaseHead(nn.Module):
    """A classifier of whole cases, on features that are averaged over tiles first and on the morphometry of the case.

    Inside the network it only pools: its output for a tile is the vector to average. :meth:`case_probabilities` classifies the average.
    Features and measures go through a linear layer, since a few hundred cases do not carry more; they are standardized with the means and
    deviations of the training cases, which are stored with the weights. The measures, which are few, also go through decision trees: classes
    that are defined by size and shape are so by thresholds and by combinations of measures. ``tree_share`` of the vote is theirs.

    Args:
        description: Level ``case``.
        feature_channels: Channels of every encoder stage, finest first.
    """

    def __init__(self, description: HeadDescription, feature_channels: Sequence[int]) -> None:
        super().__init__()
        self.description = description
        with torch.random.fork_rng(devices=[]):
            self.pooling = POOLINGS[description.pooling](stage_channels(description, feature_channels), description.evidence)
            self.blocks = [*self.pooling.widths, *([len(description.measures)] if description.measures else [])]
            output = OrdinalOutput if description.task.is_ordinal else nn.Linear
            self.output = output(sum(self.blocks), description.task.num_logits)
        self.register_buffer("feature_mean", torch.zeros(sum(self.blocks)))
        self.register_buffer("feature_scale", torch.ones(sum(self.blocks)))
        self.register_buffer("tree_share", torch.tensor(0.5))
        self.trees = TreeEnsemble(description.trees, outputs=description.task.num_logits) if description.trees else None

    @property
    def needs_segmentation(self) -> bool:
        """Whether the head looks at the segmentation, by its pooling or by its morphometry."""
        return self.pooling.needs_segmentation or bool(self.description.measures)

    def forward(self, features: Sequence[Tensor], segmentation_logits: Tensor | None = None) -> Tensor:
        """One float32 vector ``(B, sum of the pooling's widths)`` per tile; no logits."""
        with torch.autocast(device_type=features[0].device.type, enabled=False):
            logits = None if segmentation_logits is None else segmentation_logits.detach()
            return self.pooling([features[stage] for stage in self.description.stages], logits)

    def case_probabilities(self, vectors: Tensor) -> Tensor:
        """Class probabilities ``(B, number of classes)`` of cases; ``vectors`` as for :meth:`classify_case`."""
        task = self.description.task
        linear = class_probabilities(task, self.classify_case(vectors))
        if self.trees is None:
            return linear
        return torch.lerp(linear, class_shares(task, self.trees(self.measures_of(vectors))), self.tree_share)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Half of the vote was what trees had before it was stored.
        super()._load_from_state_dict({f"{prefix}tree_share": torch.tensor(0.5), **state_dict}, prefix, *args)

    def set_trees(self, trees: TreeEnsemble) -> None:
        """Have ``trees``, grown on :meth:`measures_of`, vote too."""
        self.trees = trees
        self.description = replace(self.description, trees=len(trees.feature))

    def measures_of(self, vectors: Tensor) -> Tensor:
        """The morphometry in ``vectors``, ``(B, number of measures)``; what does not exist (NaN) is the mean of the training cases."""
        first = sum(self.blocks) - len(self.description.measures)
        # In float32, as scikit-learn's trees see their inputs; not every device knows float64.
        measures = vectors[:, first:].to(self.feature_mean)
        return torch.where(measures.isnan(), self.feature_mean[first:], measures)

    def classify_case(self, vectors: Tensor) -> Tensor:
        """Logits ``(B, number of logits)`` of cases, of the linear layer alone.

        Args:
            vectors: ``(B, F)``, the averaged features and behind them the measures; a measure that does not exist (NaN) counts as the mean
                of the training cases.
        """
        with torch.autocast(device_type=self.feature_mean.device.type, enabled=False):  # where it computes, wherever the vectors are
            return self.output(self.standardize(vectors.to(self.feature_mean)))

    def standardize(self, vectors: Tensor) -> Tensor:
        """Vectors as the linear layer sees them, NaN replaced by 0."""
        return torch.nan_to_num((vectors - self.feature_mean) * self.feature_scale, nan=0.0)


def stage_channels(description: HeadDescription, feature_channels: Sequence[int]) -> list[int]:
    """Channels of the stages that a head looks at.

    Raises:
        ValueError: If the encoder has no such stage.
    """
    if max(description.stages) >= len(feature_channels):
        raise ValueError(
            f"Task {description.task.name}: stages {description.stages} do not exist in an encoder with "
            f"{len(feature_channels)} stages (0 to {len(feature_channels) - 1})."
        )
    return [int(feature_channels[stage]) for stage in description.stages]


def default_stages(n_stages: int) -> tuple[int, ...]:
    """A middle encoder stage and the bottleneck.

    Probes of a trained encoder did best at stage 2 of 6, and joint training with the bottleneck beside it.
    """
    return tuple(sorted({(n_stages - 1) // 2, n_stages - 1}))


def build_heads(
    tasks: Mapping[str, ClassificationTask],
    feature_channels: Sequence[int],
    *,
    pooling: str = "mean_max",
    stages: Sequence[int] | None = None,
    labels: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, ClassificationHead]:
    """One untrained head per task.

    Args:
        tasks: Tasks by name.
        feature_channels: Channels of every encoder stage, finest first (``network.encoder.output_channels``).
        pooling: ``mean_max``, ``attention`` or ``evidence``.
        stages: Encoder stages to look at; by default :func:`default_stages`.
        labels: ``dataset.json``'s ``labels``; needed by the pooling ``evidence`` for tasks with evidence.
        seed: Of the initial weights and of the dropout. Does not touch torch's global generator. With several processes
            call :func:`seed_dropout` with another seed in each.

    Raises:
        ValueError: For an unknown pooling, stages that do not exist or evidence without ``labels``.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = {}
    for name, task in tasks.items():
        if pooling == "evidence" and task.evidence and labels is None:
            raise ValueError(f"Task {name}: pooling over {list(task.evidence)} needs the labels of dataset.json.")
        description = HeadDescription(
            task=task,
            pooling=pooling,
            stages=default_stages(len(feature_channels)) if stages is None else tuple(stages),
            evidence=PredictedEvidence.from_labels(task.evidence, labels) if labels is not None else PredictedEvidence(),
        )
        dropout_seed = int(torch.randint(2**31, (), generator=generator))
        heads[name] = ClassificationHead(description, feature_channels, generator, dropout_seed)
    return heads


def classification_entry(heads: Mapping[str, nn.Module]) -> dict[str, Any] | None:
    """The checkpoint's entry ``classification``: which heads to build. ``None`` without heads.

    Raises:
        ValueError: If a head has no ``description`` and could not be built again.
    """
    if not heads:
        return None
    unknown = [name for name, head in heads.items() if not isinstance(getattr(head, "description", None), HeadDescription)]
    if unknown:
        raise ValueError(f"The heads of {', '.join(unknown)} have no HeadDescription, so a checkpoint could not be read again.")
    descriptions: dict[str, HeadDescription] = {name: head.description for name, head in heads.items()}
    first = next(iter(descriptions.values()))
    return {
        "tasks": {name: description.task.to_dict() for name, description in descriptions.items()},
        "pooling": first.pooling,
        "stages": list(first.stages),
        "level": first.level,
        "heads": {name: description.to_dict() for name, description in descriptions.items()},
    }


def heads_from_checkpoint(entry: Mapping[str, Any] | None, network: nn.Module) -> dict[str, ClassificationHead | CaseHead]:
    """Untrained heads as a checkpoint's entry ``classification`` describes them; none without an entry.

    Args:
        entry: Made by :func:`classification_entry`.
        network: The segmentation network, whose encoder says how many channels each stage has.
    """
    if not entry:
        return {}
    from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

    feature_channels = encoder_channels(network)
    common = {key: entry[key] for key in ("pooling", "stages", "level") if key in entry}
    heads = {}
    for name, values in entry["tasks"].items():
        settings = common | dict(entry.get("heads", {}).get(name, {}))
        description = HeadDescription.from_dict(ClassificationTask.from_dict(name, values), settings)
        if description.level == "case":
            heads[name] = CaseHead(description, feature_channels)
        else:
            heads[name] = ClassificationHead(description, feature_channels, torch.Generator().manual_seed(0), dropout_seed=0)
    return heads


def encoder_channels(network: nn.Module) -> tuple[int, ...]:
    """Channels of every encoder stage, finest first.

    Raises:
        ValueError: If the network's encoder does not say.
    """
    channels = getattr(getattr(network, "encoder", None), "output_channels", None)
    if channels is None:
        raise ValueError(
            f"Classification heads need to know the encoder's channels; {type(network).__name__} has no .encoder.output_channels "
            "(a list with the number of channels per stage, finest first)."
        )
    return tuple(int(channel) for channel in channels)


def class_probabilities(task: ClassificationTask, logits: Tensor) -> Tensor:
    """Probabilities ``(..., number of classes)`` of logits ``(..., number of logits)``, in float32.

    They add up to 1, except for ``multilabel``, where each class has its own.
    """
    logits = logits.float()
    if task.is_multilabel:
        return torch.sigmoid(logits)
    if task.is_ordinal:
        higher = torch.sigmoid(logits)
        edge = torch.ones_like(higher[..., :1])
        # clamped: two sigmoids close to 1 may be rounded in the wrong order
        return (torch.cat([edge, higher], dim=-1) - torch.cat([higher, edge * 0], dim=-1)).clamp(min=0)
    return torch.softmax(logits, dim=-1)


def class_shares(task: ClassificationTask, shares: Tensor) -> Tensor:
    """Class probabilities ``(..., number of classes)`` from :func:`tree_targets` averaged over cases."""
    if not task.is_ordinal:
        return shares
    edge = torch.ones_like(shares[..., :1])
    # clamped: means of many trees may be rounded in the wrong order
    return (torch.cat([edge, shares], dim=-1) - torch.cat([shares, edge * 0], dim=-1)).clamp(min=0)


def tree_targets(task: ClassificationTask, targets: Tensor) -> Tensor:
    """What trees learn to say, ``(B, number of logits)``: 1 for the class, or for every one that is present; ordinal: for every lower one.

    Args:
        task: Says how many classes there are and what they have to do with each other.
        targets: ``(B,)`` class indices, or ``(B, K)`` 0 and 1 for multilabel.
    """
    if task.is_multilabel:
        return targets
    indices = torch.arange(task.num_logits, device=targets.device)
    return ((targets[:, None] > indices) if task.is_ordinal else (targets[:, None] == indices)).float()


def head_rng_state(heads: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """State of the heads' random generators, as tensors by task name and module path."""
    return {name: {path: module.generator.get_state() for path, module in _seeded_modules(head)} for name, head in heads.items()}


def set_head_rng_state(heads: Mapping[str, nn.Module], state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Restore what :func:`head_rng_state` returned; heads without an entry are left as they are."""
    for name, head in heads.items():
        for path, module in _seeded_modules(head):
            if path in state.get(name, {}):
                module.generator.set_state(state[name][path].cpu())


def seed_dropout(heads: Mapping[str, nn.Module], seed: int) -> None:
    """Seed the dropout of all heads, each differently."""
    generator = torch.Generator().manual_seed(seed)
    for head in heads.values():
        for _, module in _seeded_modules(head):
            module.generator.manual_seed(int(torch.randint(2**31, (), generator=generator)))


def _seeded_modules(head: nn.Module) -> list[tuple[str, SeededDropout]]:
    """Modules of a head that own a generator."""
    return [(path, module) for path, module in head.named_modules() if isinstance(module, SeededDropout)]


def _initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Initial weights of one layer, from the given generator."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)  # torch's own choice for linear layers
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, AttentionPooling):
        for query in module.queries:
            nn.init.normal_(query, std=0.02, generator=generator)  # close to a plain mean


def _average_to(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Mean over the voxels that fall into each voxel of a coarser grid: ``(B, C, *spatial)`` to ``(B, C, *shape)``."""
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(shape)]
    return pool(image, tuple(shape))

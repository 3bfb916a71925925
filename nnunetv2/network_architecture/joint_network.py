"""A segmentation network whose encoder also feeds case-level classification heads.

Segmentation alone is the same thing with no heads: :func:`with_classification_heads` then returns the network untouched and
:func:`as_joint_output` gives its output the common form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

# Task names such as "type" or "train" clash with attributes of nn.Module, so heads are stored under a prefix.
HEAD_PREFIX = "task_"
HEADS_PREFIX = "classification_heads."  # of the names of their weights in a state dict


class JointOutput(NamedTuple):
    """What a network says about a batch."""

    segmentation: Tensor | list[Tensor]  # logits (B, C, *spatial); a list, finest first, under deep supervision
    classification: dict[str, Tensor]  # logits (B, number of logits) by task name; empty without heads


class JointNetwork(nn.Module):
    """Encoder and decoder of a segmentation network, with heads on the encoder's features.

    Parameter names of the segmentation network do not change; heads live below ``classification_heads``. Attributes that are
    not found here are those of the wrapped network.

    Args:
        network: Has ``.encoder`` (image to a list of features, finest first) and ``.decoder`` (features to logits).
        heads: ``head(features, segmentation_logits or None) -> logits`` by task name. A head that cannot do without the
            segmentation logits says so by an attribute ``needs_segmentation``.

    Raises:
        ValueError: If the network cannot be taken apart into encoder and decoder.
    """

    # The heads are small and draw from a random generator of their own, which a compiled graph could not do.
    not_compiled = ("_classify",)

    def __init__(self, network: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        _check_two_parts(network)
        self.encoder, self.decoder = network.encoder, network.decoder
        self.classification_heads = nn.ModuleDict({HEAD_PREFIX + name: head for name, head in heads.items()})
        # Not registered as a submodule: its parameters would be listed twice.
        self.__dict__["_segmentation_network"] = network

    @property
    def segmentation_network(self) -> nn.Module:
        """The wrapped network; it shares its encoder and decoder with this one."""
        return self.__dict__["_segmentation_network"]

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The heads by task name."""
        return {name.removeprefix(HEAD_PREFIX): head for name, head in self.classification_heads.items()}

    def forward(
        self, image: Tensor, *, segmentation: bool = True, classification: bool = True
    ) -> JointOutput | Tensor | list[Tensor] | dict[str, Tensor]:
        """Run the encoder once and what is asked for on top of it.

        Args:
            image: ``(B, C, *spatial)``.
            segmentation: Run the decoder.
            classification: Run the heads.

        Returns:
            Both as :class:`JointOutput`, or the one that was asked for: the segmentation output, or class logits by task.

        Raises:
            ValueError: If neither is asked for, or classification alone of a head that looks at the segmentation.
        """
        if not (segmentation or classification):
            raise ValueError("Ask for segmentation, classification or both.")
        if not segmentation:
            self._check_heads_do_without_segmentation()
        features = self.encoder(image)
        if not segmentation:
            return self._classify(features, None)
        logits = self.decoder(features)
        if not classification:
            return logits
        finest = logits[0] if isinstance(logits, (list, tuple)) else logits
        return JointOutput(logits, self._classify(features, finest.detach()))

    def _classify(self, features: list[Tensor], segmentation_logits: Tensor | None) -> dict[str, Tensor]:
        """Class logits by task name."""
        return {name: head(features, segmentation_logits) for name, head in self.heads.items()}

    def _check_heads_do_without_segmentation(self) -> None:
        """Heads that look at the segmentation cannot be run without the decoder."""
        needing = [name for name, head in self.heads.items() if getattr(head, "needs_segmentation", False)]
        if needing:
            raise ValueError(
                f"The heads of {', '.join(needing)} pool over the predicted evidence and need the segmentation. "
                "Predict both, or train with the pooling mean_max or attention."
            )

    def train(self, mode: bool = True) -> JointNetwork:
        """Switch encoder, decoder and heads, and the flag of the wrapped network, between training and evaluation."""
        super().train(mode)
        self.segmentation_network.training = mode
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            network = self.__dict__.get("_segmentation_network")
            if network is None or name.startswith("__"):
                raise
        try:
            return getattr(network, name)
        except AttributeError:
            raise AttributeError(f"Neither {type(self).__name__} nor its {type(network).__name__} has an attribute {name!r}.") from None


def with_classification_heads(network: nn.Module, heads: Mapping[str, nn.Module]) -> nn.Module:
    """The network with heads on its encoder; without heads the network itself."""
    return JointNetwork(network, heads) if heads else network


def as_joint_output(output: Tensor | list[Tensor] | JointOutput) -> JointOutput:
    """The output of any network in the common form: a segmentation network's has no classes."""
    return output if isinstance(output, JointOutput) else JointOutput(output, {})


def _check_two_parts(network: nn.Module) -> None:
    """Raise unless ``decoder(encoder(image))`` is the whole network."""
    name = type(network).__name__
    missing = [part for part in ("encoder", "decoder") if not isinstance(getattr(network, part, None), nn.Module)]
    if missing:
        absent = " and no ".join(f".{part}" for part in missing)
        raise ValueError(
            f"Classification heads need a network with .encoder and .decoder; {name} has no {absent}. "
            "Use one of nnU-Net's U-Nets, or give your network these two modules (the encoder returning its features, finest first)."
        )
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    outside = sorted(key for key in tensors if not key.startswith(("encoder.", "decoder.")))
    if outside:
        raise ValueError(
            f"Classification heads need a network that is decoder(encoder(image)); {name} has weights outside both: "
            f"{', '.join(outside[:5])}{' ...' if len(outside) > 5 else ''}. Move them into .encoder or .decoder."
        )

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CLASSIFICATION, dataset_json, plans, random_network
from torch import nn

from nnunetv2.network_architecture.classification_heads import classification_entry
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

TASKS = {name: CLASSIFICATION[name] for name in ("subtype", "grade")}
STEM = "encoder.stages.0.0.convs.0.conv.weight"


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes the checkpoint of a network."""

    def write(network: nn.Module, weights: dict[str, Any] | None = None, **entries: Any) -> Path:
        content = {"network_weights": network.state_dict() if weights is None else weights, **entries}
        if hasattr(network, "heads"):
            content["classification"] = classification_entry(network.heads)
        torch.save(content, tmp_path / "checkpoint.pth")
        return tmp_path / "checkpoint.pth"

    return write


def network_with(seed: int, classification: Any = False, channels: int = 1, features: tuple[int, int] = (4, 8)) -> nn.Module:
    content = plans()
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = list(features)
    dataset = dataset_json(channel_names={str(index): "MR" for index in range(channels)})
    return random_network(content, dataset, seed=seed, classification=classification)


def copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def changed(network: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def test_a_tensor_of_another_shape_keeps_its_weights_and_is_named_once(save) -> None:
    source, target = network_with(1), network_with(2, channels=3)
    before, lines = copied(target), []
    load_pretrained_weights(target, save(source), report=lines.append)
    kept = set(before) - changed(target, before)
    stems = {name for name in before if name.endswith(("conv.weight", "all_modules.0.weight")) and ".stages.0.0.convs.0." in name}
    stems = {name for name in stems if "encoder" in name}
    assert kept == stems | {name for name in before if ".seg_layers." in name}
    given = source.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in target.state_dict().items() if name not in kept)
    assert [line for line in lines if STEM in line] == [f"  {STEM}: [4, 1, 3, 3, 3] in the checkpoint, [4, 3, 3, 3, 3] here"]
    assert "WARNING: 1 tensors" in "\n".join(lines)


def test_missing_tensors_are_named_and_one_of_several_names_is_enough(save) -> None:
    source, target = network_with(1), network_with(2)
    weights = {name: value for name, value in source.state_dict().items() if "all_modules" not in name and "decoder.encoder" not in name}
    del weights["encoder.stages.1.0.convs.0.norm.bias"]
    before, lines = copied(target), []
    load_pretrained_weights(target, save(source, weights), report=lines.append)
    kept = set(before) - changed(target, before)
    assert {name for name in kept if ".seg_layers." not in name} == {
        f"{part}encoder.stages.1.0.convs.0.{name}.bias" for part in ("", "decoder.") for name in ("norm", "all_modules.1")
    }
    assert "  encoder.stages.1.0.convs.0.norm.bias: missing" in lines


def test_a_checkpoint_that_fits_leaves_nothing_to_warn_about(save) -> None:
    lines: list[str] = []
    load_pretrained_weights(network_with(2), save(network_with(1)), report=lines.append)
    assert len(lines) == 2
    assert "The segmentation layers keep their initial weights." in lines


def test_another_architecture_is_refused_with_every_tensor_named_and_changes_nothing(save) -> None:
    target = network_with(2, features=(6, 12))
    before = copied(target)
    with pytest.raises(ValueError, match="do not fit this network") as caught:
        load_pretrained_weights(target, save(network_with(1)))
    assert changed(target, before) == set()
    assert str(caught.value).count("in the checkpoint") == len(
        {name for name, _ in target.named_parameters() if ".seg_layers." not in name}
    )


def test_names_of_wrapped_networks_are_understood(save) -> None:
    source, target = network_with(1), network_with(2)
    weights = {f"module._orig_mod.{name}": value for name, value in source.state_dict().items()}
    before = copied(target)
    load_pretrained_weights(torch.compile(target, backend="eager"), save(source, weights), report=lambda _: None)
    assert {name for name in before if ".seg_layers." not in name} == changed(target, before)


def test_heads_of_the_same_tasks_are_taken_over_each_for_itself(save) -> None:
    tasks = TASKS | {"new": {"classes": ["x", "y"]}, "grade": {"type": "ordinal", "classes": ["low", "middle", "high"]}}
    source, target = network_with(1, TASKS), network_with(2, tasks)
    before, lines = copied(target), []
    load_pretrained_weights(target, save(source), report=lines.append)
    heads = {name for name in changed(target, before) if name.startswith("classification_heads.")}
    assert heads
    assert all(name.startswith("classification_heads.task_subtype.") for name in heads)
    given = source.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in target.state_dict().items() if "task_subtype." in name)
    text = "\n".join(lines)
    for line in ("head subtype: taken over", "head new: the checkpoint has none", "G1, G2, G3 apart, this one low, middle, high"):
        assert line in text


def test_heads_that_look_elsewhere_keep_their_weights_and_say_why(save) -> None:
    source = network_with(1, {"subtype": {"classes": ["a", "b", "c"]}})
    target = network_with(2, {"subtype": {"classes": ["a", "b", "c"]}})
    weights = {name: value[..., :1] if "task_subtype" in name and value.ndim else value for name, value in source.state_dict().items()}
    before, lines = copied(target), []
    load_pretrained_weights(target, save(source, weights), report=lines.append)
    assert not any(name.startswith("classification_heads.") for name in changed(target, before))
    assert "in the checkpoint" in next(line for line in lines if "head subtype" in line)


def test_a_checkpoint_written_on_a_gpu_is_read_without_one(save) -> None:
    source, target = network_with(1), network_with(2)
    file = save(source)
    on_gpu = file.with_name("gpu.pth")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(on_gpu, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("data.pkl"):  # where the name of the device stands
                assert content.count(b"X\3\0\0\0cpu") == 1
                content = content.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0")
            new.writestr(member.filename, content)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(on_gpu, weights_only=True)
    load_pretrained_weights(target, on_gpu, report=lambda _: None)
    assert torch.equal(target.state_dict()[STEM], source.state_dict()[STEM])


def test_a_file_without_weights_is_named(save, tmp_path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth has no entry network_weights, found \['state_dict'\]"):
        load_pretrained_weights(network_with(1), tmp_path / "other.pth")

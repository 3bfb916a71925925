from __future__ import annotations

import copy

import pytest
import torch
from network_architecture.small_unets import small_unet
from torch import nn

from nnunetv2.network_architecture.classification_heads import build_heads, encoder_channels
from nnunetv2.network_architecture.joint_network import JointNetwork, JointOutput, as_joint_output, with_classification_heads
from nnunetv2.utilities.compilation import compiled
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

# names that clash with attributes of nn.Module
TASKS = {name: ClassificationTask(name=name, classes=("a", "b", "c")) for name in ("type", "train")}
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def joint(network: nn.Module, **kwargs: object) -> JointNetwork:
    return with_classification_heads(network, build_heads(TASKS, encoder_channels(network), **kwargs))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_segmentation_is_that_of_the_wrapped_network(dimensions: int, residual: bool) -> None:
    network = small_unet(dimensions, residual=residual)
    image = torch.randn(2, 1, *(16,) * dimensions)
    output = joint(network)(image)
    torch.testing.assert_close(output.segmentation, network(image), rtol=0, atol=0)
    assert {name: logits.shape for name, logits in output.classification.items()} == {"type": (2, 3), "train": (2, 3)}


def test_parameter_names_of_the_segmentation_do_not_change() -> None:
    network = small_unet()
    expected = list(network.state_dict())
    found = list(joint(network).state_dict())
    assert found[: len(expected)] == expected
    heads = build_heads(TASKS, encoder_channels(network)).items()
    assert found[len(expected) :] == [f"classification_heads.task_{name}.{key}" for name, head in heads for key in head.state_dict()]


def test_without_heads_nothing_is_wrapped() -> None:
    network = small_unet()
    assert with_classification_heads(network, {}) is network
    output = as_joint_output(network(torch.randn(1, 1, 8, 8, 8)))
    assert isinstance(output, JointOutput) and len(output.segmentation) == 2 and output.classification == {}


def test_one_of_the_two_can_be_asked_for_and_skips_the_other() -> None:
    network = joint(small_unet()).eval()
    image = torch.randn(1, 1, 8, 8, 8)
    both = network(image)
    calls = []
    network.decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    network.heads["type"].register_forward_hook(lambda *_: calls.append("head"))
    torch.testing.assert_close(network(image, segmentation=False), both.classification)
    assert calls == ["head"]
    torch.testing.assert_close(network(image, classification=False), both.segmentation)
    assert calls == ["head", "decoder"]
    with pytest.raises(ValueError, match="segmentation, classification or both"):
        network(image, segmentation=False, classification=False)


def test_heads_that_look_at_the_segmentation_refuse_to_go_without() -> None:
    tasks = {"grade": ClassificationTask(name="grade", classes=("a", "b"), evidence=("lesion",))}
    network = small_unet()
    heads = build_heads(tasks, encoder_channels(network), pooling="evidence", labels=LABELS)
    with pytest.raises(ValueError, match="grade.*need the segmentation"):
        with_classification_heads(network, heads)(torch.randn(1, 1, 8, 8, 8), segmentation=False)


def test_unknown_attributes_are_those_of_the_wrapped_network() -> None:
    network = small_unet()
    wrapped = joint(network)
    assert wrapped.key_to_encoder == "encoder.stages"
    assert wrapped.compute_conv_feature_map_size((8, 8, 8)) == network.compute_conv_feature_map_size((8, 8, 8))
    with pytest.raises(AttributeError, match="PlainConvUNet.*'colour'"):
        _ = wrapped.colour


def test_deep_supervision_is_switched_at_the_decoder() -> None:
    wrapped = joint(small_unet())
    wrapped.decoder.deep_supervision = False
    assert isinstance(wrapped(torch.randn(1, 1, 8, 8, 8)).segmentation, torch.Tensor)


def test_training_and_evaluation_reach_the_wrapped_network_and_the_heads() -> None:
    network = small_unet()
    wrapped = joint(network).eval()
    assert not network.training and not network.encoder.training and not wrapped.heads["type"].training
    wrapped.train()
    assert network.training and network.encoder.training and wrapped.heads["type"].training


def test_class_gradients_reach_the_encoder_and_not_the_decoder() -> None:
    tasks = {"grade": ClassificationTask(name="grade", classes=("a", "b"), evidence=("lesion",))}
    network = small_unet()
    for pooling in ("mean_max", "attention", "evidence"):
        wrapped = JointNetwork(network, build_heads(tasks, encoder_channels(network), pooling=pooling, labels=LABELS))
        wrapped.zero_grad()
        wrapped(torch.randn(2, 1, 8, 8, 8)).classification["grade"].sum().backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in wrapped.encoder.parameters())
        assert all(parameter.grad is None for parameter in wrapped.decoder.seg_layers.parameters())
        assert all(parameter.grad is not None for parameter in wrapped.classification_heads.parameters())


@pytest.mark.parametrize("pooling", ["mean_max", "attention"])
def test_heads_with_weight_zero_leave_segmentation_training_bit_identical(pooling: str) -> None:
    trained = []
    for with_heads in (False, True):
        torch.manual_seed(3)
        network = small_unet()
        model = joint(network, pooling=pooling) if with_heads else network
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            image = torch.randn(2, 1, 8, 8, 8)  # from the global generator: heads must not have drawn from it
            output = as_joint_output(model(image))
            loss = output.segmentation[0].square().mean() + output.segmentation[1].square().mean()
            loss = loss + 0.0 * sum(logits.logsumexp(1).mean() for logits in output.classification.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained.append(network.state_dict())
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])


def test_a_network_without_the_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="Conv3d has no .encoder and no .decoder"):
        JointNetwork(nn.Conv3d(1, 2, 3), {})


def test_a_network_with_weights_outside_both_parts_is_refused() -> None:
    network = small_unet()
    network.final = nn.Conv3d(3, 3, 1)
    with pytest.raises(ValueError, match="weights outside both: final.bias, final.weight"):
        JointNetwork(network, {})


def test_a_copy_has_weights_of_its_own() -> None:
    wrapped = joint(small_unet())
    twin = copy.deepcopy(wrapped)
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(twin.eval()(image), wrapped.eval()(image))
    assert twin.segmentation_network.encoder is twin.encoder
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert next(wrapped.parameters()).any()


def test_a_compiled_network_gives_the_same_output() -> None:
    wrapped = joint(small_unet()).eval()
    image = torch.randn(1, 1, 8, 8, 8)
    compiled = torch.compile(wrapped, backend="eager")
    torch.testing.assert_close(compiled(image), wrapped(image))
    torch.testing.assert_close(compiled(image, classification=False), wrapped(image).segmentation)


def test_heads_are_left_out_of_a_compiled_network(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = joint(small_unet()).eval()
    image = torch.randn(1, 1, 8, 8, 8)
    expected = wrapped(image)
    real, graphs = torch.compile, []

    def backend(graph: torch.fx.GraphModule, _inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend=backend))
    torch.testing.assert_close(compiled(wrapped)(image), expected)
    called = " ".join(str(node.target) for graph in graphs for node in graph.graph.nodes)
    assert "conv" in called
    assert "linear" not in called

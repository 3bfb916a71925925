from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from network_architecture.small_unets import small_unet
from torch import Tensor, nn

from nnunetv2.network_architecture.classification_heads import (
    LARGEST_DEVIATION,
    SMALLEST_DEVIATION,
    ClassificationHead,
    RunningStandardization,
    build_heads,
    class_probabilities,
    classification_entry,
    default_stages,
    encoder_channels,
    head_rng_state,
    heads_from_checkpoint,
    seed_dropout,
    set_head_rng_state,
)
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file, save_checkpoint_file
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

CHANNELS = (4, 8, 16)
LABELS = {"background": 0, "organ": 1, "lesion": 2}
TASKS = {
    "subtype": ClassificationTask(name="subtype", classes=("a", "b", "c"), evidence=("lesion",)),
    "findings": ClassificationTask(name="findings", classes=("x", "y"), type="multilabel"),
    "grade": ClassificationTask(name="grade", classes=("g1", "g2", "g3", "g4"), type="ordinal", evidence=("lesion",)),
}
POOLINGS = ["mean_max", "attention", "evidence"]


def features(dimensions: int = 3, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, channels, *(8 // 2**i,) * dimensions, generator=generator).to(dtype).requires_grad_(requires_grad)
        for i, channels in enumerate(CHANNELS)
    ]


def lesion_at(*voxels: tuple[int, ...], shape: tuple[int, ...] = (8, 8, 8)) -> Tensor:
    """Logits of a segmentation that is sure of a lesion at some voxels and of background elsewhere."""
    logits = torch.zeros(2, 3, *shape)
    logits[:, 0] = 10
    for voxel in voxels:
        logits[(slice(None), 2, *voxel)] = 20
    return logits


def heads(pooling: str = "mean_max", **kwargs: object) -> dict[str, ClassificationHead]:
    return build_heads(TASKS, CHANNELS, pooling=pooling, labels=LABELS, **kwargs)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_heads_give_one_logit_vector_per_sample(pooling: str, dimensions: int) -> None:
    logits = {
        name: head(features(dimensions), lesion_at(shape=(8,) * dimensions)) for name, head in heads(pooling).items()
    }
    assert {name: tuple(value.shape) for name, value in logits.items()} == {"subtype": (2, 3), "findings": (2, 2), "grade": (2, 3)}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_heads_compute_in_float32_under_autocast_with_finite_gradients(pooling: str) -> None:
    maps = features(dtype=torch.bfloat16, requires_grad=True)
    for head in heads(pooling).values():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = head(maps, lesion_at((4, 4, 4)).bfloat16())
            logits.square().sum().backward()
        assert logits.dtype == torch.float32
        assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in head.parameters())
    assert all(torch.isfinite(maps[stage].grad).all() and maps[stage].grad.any() for stage in default_stages(3))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_joint_step_under_autocast_has_finite_gradients(pooling: str) -> None:
    from nnunetv2.network_architecture.joint_network import with_classification_heads

    network = small_unet()
    model = with_classification_heads(network, build_heads(TASKS, encoder_channels(network), pooling=pooling, labels=LABELS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(2, 1, 16, 16, 16))
        loss = output.segmentation[0].float().square().mean() + sum(value.square().mean() for value in output.classification.values())
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert output.segmentation[0].dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in output.classification.values())
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_float16_features_whose_sum_overflows_are_pooled_as_in_float32(pooling: str) -> None:
    maps = [(2000 + 2 * feature).half() for feature in features()]  # sum over the finest stage 1e6, float16 ends at 65504
    head = heads(pooling)["subtype"]
    logits = lesion_at((0, 1, 2), (4, 4, 4)).half()
    pooled, expected = head.pool(maps, logits), head.pool([feature.float() for feature in maps], logits.float())
    assert pooled.dtype == torch.float32 and torch.isfinite(pooled).all()
    # Means between 1024 and 2048 are whole numbers in float16.
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-4)


def test_mean_max_pools_what_its_name_says() -> None:
    maps = features()
    pooled = heads(stages=(1,))["subtype"].pool(maps)
    torch.testing.assert_close(pooled, torch.cat([maps[1].mean((2, 3, 4)), maps[1].amax((2, 3, 4))], 1))


def test_means_and_maxima_are_normalized_each_on_their_own() -> None:
    head = heads()["subtype"].eval()
    pooled = head.pool(features())
    means, maxima = pooled.split(head.pooling.widths, 1)
    scaled = torch.cat([means, 1000 * maxima + 5], 1)  # maxima of another scale drown nothing
    torch.testing.assert_close(head.classify(scaled), head.classify(pooled), rtol=1e-3, atol=1e-4)


def test_heads_are_small_and_without_batch_norm() -> None:
    for pooling in POOLINGS:
        for head in build_heads(TASKS, (320, 320, 320), pooling=pooling, labels=LABELS).values():
            assert head.hidden.out_features == 64
            assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in head.modules())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_sample_is_classified_the_same_whatever_else_is_in_the_batch(pooling: str) -> None:
    maps, logits = features(), lesion_at((0, 1, 2), (4, 4, 4))
    for name, head in heads(pooling).items():
        head.dropout.probability = 0.0
        # Copies: in training a batch changes the running statistics, for those after it.
        alone = copy.deepcopy(head.train())([feature[:1] for feature in maps], logits[:1])
        torch.testing.assert_close(copy.deepcopy(head)(maps, logits)[:1], alone, msg=name)


def test_running_statistics_are_those_of_all_samples_at_first_and_only_of_training() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 3 + 0.1 * torch.randn(80, 5, generator=generator)
    standardization = RunningStandardization(5)
    for batch in values.split(2):
        standardization(batch)
    torch.testing.assert_close(standardization.mean, values.mean(0))
    torch.testing.assert_close(standardization.square, values.square().mean(0))
    standardization.eval()
    before = copy.deepcopy(standardization.state_dict())
    standardized = standardization(values)
    deviations = (values - values.mean(0)) / (values.std(0, correction=0) + SMALLEST_DEVIATION)
    expected = deviations / (1 + deviations.abs() / LARGEST_DEVIATION)
    torch.testing.assert_close(standardized, expected, atol=1e-3, rtol=1e-3)
    for key, value in standardization.state_dict().items():
        assert torch.equal(value, before[key])


def test_running_statistics_forget() -> None:
    standardization = RunningStandardization(1)
    for _ in range(600):
        standardization(torch.zeros(2, 1))
    for _ in range(600):
        standardization(torch.ones(2, 1))
    assert standardization.mean.item() > 0.9


def test_a_head_learns_from_features_that_hardly_vary_between_samples() -> None:
    """As after InstanceNorm: channels differ a lot, samples differ little."""
    task = TASKS["subtype"]
    head = build_heads({"subtype": task}, CHANNELS, labels=LABELS)["subtype"].train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    channels = 3 * torch.randn(CHANNELS[-1], generator=generator)
    direction = torch.randn(CHANNELS[-1], generator=generator)

    def batch(size: int) -> tuple[list[Tensor], Tensor]:
        targets = torch.randint(3, (size,), generator=generator)
        last = channels + 0.05 * (targets[:, None] - 1) * direction + 0.01 * torch.randn(size, len(channels), generator=generator)
        return [torch.zeros(size, width, 1) for width in CHANNELS[:-1]] + [last[..., None]], targets

    for _ in range(150):
        inputs, targets = batch(2)
        loss = torch.nn.functional.cross_entropy(head(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, targets = batch(60)
    assert (head.eval()(inputs).argmax(1) == targets).float().mean() > 0.9


def test_attention_can_single_out_a_voxel() -> None:
    head = heads("attention", stages=(0,))["subtype"]
    maps = features()
    maps[0] = torch.randn(2, 4, 8, 8, 8) * 0.1
    maps[0][:, :, 1, 2, 3] = torch.tensor([3.0, -1.0, -1.0, -1.0])
    with torch.no_grad():
        head.pooling.queries[0].copy_(torch.tensor([100.0, 0, 0, 0]))
    expected = torch.layer_norm(maps[0][:, :, 1, 2, 3], (4,))
    torch.testing.assert_close(head.pool(maps), expected, rtol=0.2, atol=0.2)


def test_evidence_pooling_sees_the_predicted_lesion_only() -> None:
    head = heads("evidence", stages=(0, 2))["subtype"]
    maps = features()
    found = head.pool(maps, lesion_at((0, 1, 2)))
    at_voxel = torch.cat([maps[0][:, :, 0, 1, 2], maps[2][:, :, 0, 0, 0]], 1)  # 8 voxels to 2: voxel 0
    torch.testing.assert_close(found, torch.cat([at_voxel, at_voxel], 1))
    elsewhere = [stage.clone() for stage in maps]
    elsewhere[0][:, :, 5:] = 99
    torch.testing.assert_close(head.pool(elsewhere, lesion_at((0, 1, 2))), found)


def test_evidence_pooling_without_a_predicted_lesion_sees_everything() -> None:
    maps = features()
    found = heads("evidence")["subtype"].pool(maps, lesion_at())
    torch.testing.assert_close(found, heads("mean_max")["subtype"].pool(maps))


def test_evidence_pooling_mixes_samples_with_and_without_lesion() -> None:
    logits = lesion_at((0, 1, 2))
    logits[1] = lesion_at()[1]
    head = heads("evidence")["subtype"]
    maps = features()
    found = head.pool(maps, logits)
    torch.testing.assert_close(found[0], head.pool(maps, lesion_at((0, 1, 2)))[0])
    torch.testing.assert_close(found[1], head.pool(maps, lesion_at())[1])


def test_evidence_pooling_needs_the_segmentation_and_the_labels() -> None:
    with pytest.raises(ValueError, match="needs the segmentation"):
        heads("evidence")["subtype"](features())
    with pytest.raises(ValueError, match="needs the labels"):
        build_heads(TASKS, CHANNELS, pooling="evidence")


def test_averaged_vectors_of_tiles_can_be_classified_once() -> None:
    head = heads()["subtype"].eval()
    pooled = head.pool(features())
    torch.testing.assert_close(head.classify(pooled), head(features()))
    assert head.classify(pooled.mean(0, keepdim=True)).shape == (1, 3)


def test_ordinal_probabilities_are_never_negative_whatever_was_learned() -> None:
    head = heads()["grade"].eval()
    generator = torch.Generator().manual_seed(0)
    for scale in (1, 10, 1000):
        with torch.no_grad():
            for parameter in head.output.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            logits = head(features())
        assert (logits.diff(dim=1) <= 0).all()
        probabilities = class_probabilities(TASKS["grade"], logits)
        assert (probabilities >= 0).all()
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_ordinal_thresholds_start_with_equally_likely_classes() -> None:
    output = heads()["grade"].output
    probabilities = class_probabilities(TASKS["grade"], output(torch.zeros(1, output.score.in_features)))
    torch.testing.assert_close(probabilities, torch.full((1, 4), 0.25))


def test_an_ordinal_task_of_two_classes_has_one_logit() -> None:
    task = ClassificationTask(name="t", classes=("low", "high"), type="ordinal")
    logits = build_heads({"t": task}, CHANNELS)["t"](features())
    assert logits.shape == (2, 1) and class_probabilities(task, logits).shape == (2, 2)


def test_probabilities_of_each_type() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    torch.testing.assert_close(class_probabilities(TASKS["subtype"], logits), torch.softmax(logits, 1))
    torch.testing.assert_close(class_probabilities(TASKS["findings"], logits[:, :2]), torch.sigmoid(logits[:, :2]))
    s = torch.sigmoid
    expected = torch.stack([1 - s(logits[0, 0]), s(logits[0, 0]) - s(logits[0, 1]), s(logits[0, 1]) - s(logits[0, 2]), s(logits[0, 2])])
    torch.testing.assert_close(class_probabilities(TASKS["grade"], logits)[0], expected)


def test_heads_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for pooling in POOLINGS:
        for head in heads(pooling).values():
            head(features(), lesion_at())
    assert torch.equal(torch.rand(3), expected)


def test_initial_weights_and_dropout_depend_on_the_seed_only() -> None:
    torch.manual_seed(1)
    first = heads(seed=5)
    torch.manual_seed(2)
    second, other = heads(seed=5), heads(seed=6)
    for name in TASKS:
        torch.testing.assert_close(first[name].state_dict(), second[name].state_dict(), rtol=0, atol=0)
        assert torch.equal(first[name](features()), second[name](features()))
        assert not torch.equal(first[name].hidden.weight, other[name].hidden.weight)


def test_dropout_continues_where_it_was_saved(tmp_path: Path) -> None:
    modules = heads()
    modules["subtype"].standardization.eval()
    modules["subtype"](features())
    save_checkpoint_file({"head_random_state": head_rng_state(modules)}, tmp_path / "c.pth")
    expected = [modules["subtype"](features()) for _ in range(2)]
    assert not torch.equal(expected[0], expected[1])
    set_head_rng_state(modules, load_checkpoint_file(tmp_path / "c.pth")["head_random_state"])
    assert all(torch.equal(modules["subtype"](features()), value) for value in expected)


def test_processes_can_drop_out_differently() -> None:
    modules = heads()
    modules["subtype"].standardization.eval()
    outputs = []
    for seed in (0, 1, 0):
        seed_dropout(modules, seed)
        outputs.append(modules["subtype"](features()))
    assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    dropout = heads()["subtype"].dropout
    ones = torch.ones(200, 200)
    assert dropout(ones).mean().item() == pytest.approx(1, abs=0.02)
    assert (dropout(ones) == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(dropout.eval()(ones), ones)


def test_a_copied_head_drops_out_as_the_original_would() -> None:
    head = heads()["subtype"]
    twin = copy.deepcopy(head)
    assert torch.equal(twin(features()), head(features()))
    assert twin.dropout.generator is not head.dropout.generator


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_checkpoint_rebuilds_the_heads(tmp_path: Path, pooling: str) -> None:
    network = small_unet()
    trained = build_heads(TASKS, encoder_channels(network), pooling=pooling, stages=(0, 2), labels=LABELS, seed=3)
    weights = {name: head.state_dict() for name, head in trained.items()}
    save_checkpoint_file({"classification": classification_entry(trained), "weights": weights}, tmp_path / "c.pth")
    checkpoint = load_checkpoint_file(tmp_path / "c.pth")
    rebuilt = heads_from_checkpoint(checkpoint["classification"], network)
    assert list(rebuilt) == list(TASKS)
    for name, head in rebuilt.items():
        head.load_state_dict(checkpoint["weights"][name])
        assert head.description == trained[name].description
        torch.testing.assert_close(head.eval()(features(), lesion_at((1, 1, 1))), trained[name].eval()(features(), lesion_at((1, 1, 1))))


def test_no_heads_no_entry() -> None:
    assert classification_entry({}) is None
    assert heads_from_checkpoint(None, small_unet()) == {}


def test_heads_that_could_not_be_rebuilt_are_no_entry() -> None:
    with pytest.raises(ValueError, match="subtype.*HeadDescription"):
        classification_entry({"subtype": nn.Linear(2, 3)})


def test_default_stages_are_the_middle_and_the_bottleneck() -> None:
    assert [default_stages(n) for n in (1, 2, 3, 6, 8)] == [(0,), (0, 1), (1, 2), (2, 5), (3, 7)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"pooling": "median"}, "unknown pooling 'median'"), ({"stages": (3,)}, "do not exist"), ({"stages": ()}, "stages must be")],
)
def test_impossible_heads_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_heads(TASKS, CHANNELS, **kwargs)


def test_a_network_that_does_not_tell_its_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder.output_channels"):
        encoder_channels(nn.Conv3d(1, 1, 1))

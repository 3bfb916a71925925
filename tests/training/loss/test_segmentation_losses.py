from __future__ import annotations

import pytest
import torch

from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper, deep_supervision_weights
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss, get_tp_fp_fn_tn
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss, TopKLoss


@pytest.mark.parametrize("dice_class", [SoftDiceLoss, MemoryEfficientSoftDiceLoss])
def test_dice_of_a_perfect_prediction_is_minus_one(dice_class: type[torch.nn.Module]) -> None:
    target = torch.tensor([0, 1, 2, 1]).reshape(1, 1, 2, 2)
    perfect = torch.nn.functional.one_hot(target[:, 0], 3).movedim(-1, 1).float()
    assert dice_class(smooth=1e-5)(perfect, target).item() == pytest.approx(-1)


def test_dice_counted_by_hand() -> None:
    prediction = torch.tensor([[[1.0, 0.5, 0.0, 0.0]]])
    target = torch.tensor([[[1, 1, 0, 0]]])
    assert MemoryEfficientSoftDiceLoss(smooth=0)(prediction, target).item() == pytest.approx(-2 * 1.5 / (1.5 + 2))


def test_batch_dice_does_not_punish_a_structure_missing_from_one_sample() -> None:
    prediction = torch.tensor([[[1.0, 0.0]], [[0.1, 0.0]]])
    target = torch.tensor([[[1, 0]], [[0, 0]]])
    by_sample = MemoryEfficientSoftDiceLoss(smooth=1e-5)(prediction, target)
    by_batch = MemoryEfficientSoftDiceLoss(smooth=1e-5, batch_dice=True)(prediction, target)
    assert by_batch < -0.9 < by_sample


def test_dice_of_half_precision_does_not_overflow() -> None:
    prediction = torch.ones(1, 2, 300, 300, dtype=torch.float16)  # 90000 > 65504
    target = torch.ones(1, 1, 300, 300, dtype=torch.int16)
    for dice_class in (SoftDiceLoss, MemoryEfficientSoftDiceLoss):
        assert torch.isfinite(dice_class()(prediction, target))


def test_counts_keep_the_axes_that_are_not_summed() -> None:
    probabilities = torch.full((2, 3, 4, 5), 1 / 3)
    target = torch.zeros(2, 1, 4, 5)
    tp, fp, fn, tn = get_tp_fp_fn_tn(probabilities, target, axes=[0, 2, 3])
    torch.testing.assert_close(tp, torch.tensor([40 / 3, 0, 0]))
    torch.testing.assert_close(fn, torch.tensor([80 / 3, 0, 0]))
    torch.testing.assert_close(fp, torch.tensor([0, 40 / 3, 40 / 3]))
    torch.testing.assert_close(tn, torch.tensor([0, 80 / 3, 80 / 3]))
    assert get_tp_fp_fn_tn(probabilities, target, axes=[])[0].shape == (2, 3, 4, 5)


def test_a_batch_without_annotation_has_a_connected_finite_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = DC_and_CE_loss({"smooth": 1e-5, "do_bg": False}, {}, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss)
    loss(logits, torch.full((1, 1, 4, 4), 3)).backward()
    assert not logits.grad.any()


def test_a_target_with_two_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="one channel"):
        RobustCrossEntropyLoss()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4))


def test_top_k_of_few_voxels_averages_at_least_one() -> None:
    assert torch.isfinite(TopKLoss(k=10)(torch.randn(1, 2, 2, 2), torch.zeros(1, 1, 2, 2)))


def test_deep_supervision_weights_halve_and_leave_out_the_coarsest() -> None:
    assert deep_supervision_weights(3) == pytest.approx((2 / 3, 1 / 3, 0))


def test_a_single_output_keeps_its_weight() -> None:
    assert deep_supervision_weights(1) == (1.0,)


def test_the_coarsest_output_can_keep_a_tiny_weight() -> None:
    weights = deep_supervision_weights(3, zero_last=1e-6)
    assert 0 < weights[-1] < 1e-6 and sum(weights) == pytest.approx(1)


def test_outputs_of_weight_zero_are_not_computed() -> None:
    seen = []

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(output.item())
        return output * target

    wrapped = DeepSupervisionWrapper(loss, (0.5, 0, 0.25))
    outputs = [torch.tensor(value) for value in (1.0, 2.0, 3.0)]
    assert wrapped(outputs, [torch.tensor(4.0)] * 3).item() == 0.5 * 4 + 0.25 * 12
    assert seen == [1, 3]


def test_an_output_without_deep_supervision_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match="set_deep_supervision_enabled"):
        DeepSupervisionWrapper(RobustCrossEntropyLoss(), (1, 0.5))(torch.zeros(1, 2, 2, 2), [torch.zeros(1, 1, 2, 2)])

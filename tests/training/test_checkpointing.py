from __future__ import annotations

import os
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2.training.checkpointing import (
    CheckpointError,
    load_checkpoint_file,
    newest_checkpoint,
    restore_rng_state,
    rng_state,
    save_checkpoint_file,
    tensors_only,
)

CONTENT = {
    "network_weights": OrderedDict(w=torch.arange(3.0)),
    "logging": {"train_losses": [np.float32(0.5)], "dice_per_class_or_region": [[np.float64(0.25), float("nan")]]},
    "_best_ema": np.float32(0.75),
    "current_epoch": np.int64(3),
    "init_args": {"plans": {"patch_size": (4, np.int64(5))}, "device": torch.device("cpu"), "folder": Path("a/b")},
    "inference_allowed_mirroring_axes": (0, 1),
    "array": np.arange(4),
    "nothing": None,
}


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_comes_back_with_plain_values(tmp_path: Path) -> None:
    save_checkpoint_file(CONTENT, tmp_path / "c.pth")
    found = torch.load(tmp_path / "c.pth", weights_only=True)  # without any allowed globals
    assert found["_best_ema"] == 0.75 and type(found["_best_ema"]) is float
    assert type(found["current_epoch"]) is int
    assert found["init_args"]["plans"]["patch_size"] == (4, 5)
    assert found["init_args"]["folder"] == "a/b"
    assert found["inference_allowed_mirroring_axes"] == (0, 1)
    torch.testing.assert_close(found["network_weights"]["w"], torch.arange(3.0))
    torch.testing.assert_close(found["array"], torch.arange(4))


def test_optimizer_states_survive(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.ones(2))]
    for optimizer in (torch.optim.AdamW(weights, lr=3e-4), torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True)):
        weights[0].sum().backward()
        optimizer.step()
        save_checkpoint_file({"optimizer_state": optimizer.state_dict()}, tmp_path / "c.pth")
        restored = type(optimizer)(weights, lr=1.0, **({"momentum": 0.9} if isinstance(optimizer, torch.optim.SGD) else {}))
        restored.load_state_dict(load_checkpoint_file(tmp_path / "c.pth")["optimizer_state"])
        torch.testing.assert_close(restored.state_dict(), optimizer.state_dict())


def test_checkpoints_of_stock_nnunet_with_numpy_scalars_are_read(tmp_path: Path) -> None:
    torch.save({"_best_ema": np.float32(0.5), "logging": {"mean_fg_dice": [np.float64(0.5)], "x": np.zeros(2)}}, tmp_path / "c.pth")
    found = load_checkpoint_file(tmp_path / "c.pth")
    assert found["_best_ema"] == np.float32(0.5) and found["logging"]["mean_fg_dice"] == [0.5]


def test_checkpoints_written_with_numpy_1_are_read(tmp_path: Path) -> None:
    torch.save({"_best_ema": np.float32(0.5)}, tmp_path / "numpy2.pth")
    with zipfile.ZipFile(tmp_path / "numpy2.pth") as source, zipfile.ZipFile(tmp_path / "numpy1.pth", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core", b"numpy.core"))
    assert load_checkpoint_file(tmp_path / "numpy1.pth")["_best_ema"] == 0.5


@pytest.mark.parametrize("old_format", [False, True])
def test_a_hostile_file_is_refused_and_does_nothing(tmp_path: Path, old_format: bool) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": Hostile(tmp_path / "done")}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(CheckpointError, match="was refused.*can run any code.*mkdir"):
        load_checkpoint_file(path)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_truncated_file_is_an_error_that_says_so(tmp_path: Path, share: float) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    save_checkpoint_file(CONTENT, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="checkpoint_latest.pth cannot be read.*damaged or incomplete"):
        load_checkpoint_file(path)


def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("this is no checkpoint at all")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint_file(tmp_path / "text.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        load_checkpoint_file(tmp_path / "tensor.pth")
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        load_checkpoint_file(tmp_path / "missing.pth")


def test_an_object_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    save_checkpoint_file({"a": 1}, tmp_path / "c.pth")
    with pytest.raises(TypeError, match=r"checkpoint\['init_args'\]\['splits'\]\[1\] is a function"):
        save_checkpoint_file({"init_args": {"splits": [1, lambda: 0]}}, tmp_path / "c.pth")
    assert load_checkpoint_file(tmp_path / "c.pth") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


def test_plain_values_of_numpy_text_and_booleans() -> None:
    converted = tensors_only({np.str_("k"): [np.str_("v"), np.bool_(True), True, np.array(["a"])]})
    assert converted == {"k": ["v", True, True, ["a"]]}
    assert [type(value) for value in converted["k"]] == [str, bool, bool, list]


def test_the_checkpoint_that_is_farthest_in_the_training_is_continued(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == (None, None)
    for name, epoch in (("final", 3), ("latest", 7), ("best", 5)):
        save_checkpoint_file({"current_epoch": epoch}, tmp_path / f"checkpoint_{name}.pth")
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint_latest.pth", {"current_epoch": 7})


def test_checkpoints_that_cannot_be_read_are_named_and_passed_over(tmp_path: Path) -> None:
    save_checkpoint_file({"current_epoch": 5}, tmp_path / "checkpoint_best.pth")
    (tmp_path / "checkpoint_latest.pth").write_bytes(b"half a file")
    torch.save({"current_epoch": 9, "network_weights": Hostile(tmp_path / "done")}, tmp_path / "checkpoint_final.pth")
    messages: list[str] = []
    assert newest_checkpoint(tmp_path, messages.append)[1] == {"current_epoch": 5}
    assert "checkpoint_final.pth was refused" in messages[0] and "checkpoint_latest.pth cannot be read" in messages[1]
    assert not (tmp_path / "done").exists()


def test_checkpoints_of_which_none_can_be_read_are_not_replaced_by_a_new_training(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_latest.pth").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="None of the checkpoints.*checkpoint_latest.pth.*remove them"):
        newest_checkpoint(tmp_path, lambda message: None)


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    random.gauss(0, 1), np.random.normal()  # leaves the second value of a pair waiting in both
    save_checkpoint_file({"random": rng_state()}, tmp_path / "c.pth")
    drawn = random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(2).tolist()
    restore_rng_state(torch.load(tmp_path / "c.pth", weights_only=True)["random"])
    assert (random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(2).tolist()) == drawn

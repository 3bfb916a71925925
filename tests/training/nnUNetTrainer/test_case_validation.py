"""The validation of whole cases at the end of a training."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainings import make_trainer

from nnunetv2.scheduling import CaseErrors
from nnunetv2.training.nnUNetTrainer import case_validation
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


@pytest.mark.parametrize("step", ["_predict", "_export"])
def test_a_case_that_fails_does_not_stop_the_others(step: str, tiny_training: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], dataset="Dataset002_Plain")
    trainer.initialize()
    _, identifiers = trainer.do_split()
    real = getattr(case_validation, step)

    def fail_for_the_first(*arguments: Any) -> Any:
        if any(str(argument).endswith(identifiers[0]) for argument in arguments):
            raise OSError("disk full")
        return real(*arguments)

    monkeypatch.setattr(case_validation, step, fail_for_the_first)
    with pytest.raises(CaseErrors, match=f"(?s)1 of 2 cases failed.*{identifiers[0]}: disk full"):
        trainer.perform_actual_validation()
    assert [file.name for file in Path(trainer.output_folder, "validation").iterdir()] == [f"{identifiers[1]}.nii.gz"]


def test_beside_a_gpu_cases_are_written_by_threads() -> None:
    written: dict[str, str] = {}

    def write(identifier: str) -> None:
        if identifier == "broken":
            raise OSError("disk full")
        written[identifier] = threading.current_thread().name

    with case_validation._Exports(torch.device("cuda")) as exports:
        for identifier in ["broken", *"abcdefghijklmnop"]:
            exports.submit(identifier, write, identifier)
    assert "".join(sorted(written)) == "abcdefghijklmnop"
    assert all(name.startswith("export") for name in written.values())
    assert [str(failure) for failure in exports.failures] == ["broken: disk full"]


@pytest.mark.parametrize("enabled", [True, False])
def test_deep_supervision_is_after_the_validation_what_it_was_before(enabled: bool, tiny_training: dict[str, Path]) -> None:
    trainer = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], dataset="Dataset002_Plain")
    trainer.enable_deep_supervision = enabled
    trainer.initialize()
    with case_validation.segmentation_at_full_resolution(trainer):
        assert trainer.network.decoder.deep_supervision is False
    assert trainer.network.decoder.deep_supervision is enabled

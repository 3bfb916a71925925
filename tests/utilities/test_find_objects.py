"""Trainers of this package and of the user's folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

OWN = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerMine(nnUNetTrainer):
    num_epochs = 3
"""


def test_trainers_of_the_package_are_found_by_name() -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    assert recursive_find_trainer_class_by_name("nnUNetTrainer") is nnUNetTrainer
    assert issubclass(recursive_find_trainer_class_by_name("nnUNetTrainer_5epochs"), nnUNetTrainer)


def test_trainers_in_folders_of_the_user_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "broken.py").write_text("import does_not_exist\nclass nnUNetTrainerMine: pass")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "mine.py").write_text(OWN)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path / "one"), " ", str(tmp_path / "missing"), str(tmp_path / "two")]))
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMine").num_epochs == 3


def test_an_unknown_trainer_is_an_error_that_names_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    with pytest.raises(RuntimeError, match=f"nnUNetTrainerNowhere.*{tmp_path}"):
        recursive_find_trainer_class_by_name("nnUNetTrainerNowhere")


def test_a_class_that_is_no_trainer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("class nnUNetTrainerMine: pass")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    with pytest.raises(AssertionError, match="no subclass"):
        recursive_find_trainer_class_by_name("nnUNetTrainerMine")

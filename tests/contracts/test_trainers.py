"""Every trainer is found by name, trains a step and validates one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_trainings import make_trainer

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

LENGTHS = {
    "nnUNetTrainer_1epoch": 1, "nnUNetTrainer_5epochs": 5, "nnUNetTrainer_10epochs": 10, "nnUNetTrainer_20epochs": 20,
    "nnUNetTrainer_50epochs": 50, "nnUNetTrainer_100epochs": 100, "nnUNetTrainer_250epochs": 250, "nnUNetTrainer_500epochs": 500,
    "nnUNetTrainer_750epochs": 750, "nnUNetTrainer_2000epochs": 2000, "nnUNetTrainer_4000epochs": 4000,
    "nnUNetTrainer_8000epochs": 8000, "nnUNetTrainer_250epochs_NoMirroring": 250, "nnUNetTrainer_2000epochs_NoMirroring": 2000,
    "nnUNetTrainer_4000epochs_NoMirroring": 4000, "nnUNetTrainer_8000epochs_NoMirroring": 8000,
    "nnUNetTrainer_onlyMirror01_1500ep": 1500, "nnUNetTrainerMultitask_5epochs": 5, "nnUNetTrainerMultitask_20epochs": 20,
    "nnUNetTrainerCELoss_5epochs": 5, "nnUNetTrainerDA5_10epochs": 10, "nnUNetTrainerBenchmark_5epochs": 5,
    "nnUNetTrainerBenchmark_5epochs_noDataLoading": 5, "nnUNetTrainerMultitask_50epochs": 50, "nnUNetTrainerMultitask_100epochs": 100, "nnUNetTrainerMultitask_250epochs": 250,
}  # fmt: skip
OTHERS = (
    "nnUNetTrainer",
    "nnUNetTrainerMultitask",
    "nnUNetTrainerNoMirroring",
    "nnUNetTrainer_onlyMirror01",
    "nnUNetTrainerNoDA",
    "nnUNetTrainer_noDummy2DDA",
    "nnUNetTrainerNoDeepSupervision",
    "nnUNetTrainer_DASegOrd0",
    "nnUNetTrainerDA5",
    "nnUNetTrainerDA5ord0",
    "nnUNetTrainerCELoss",
    "nnUNetTrainerDiceLoss",
    "nnUNetTrainerDiceTopK10Loss",
    "nnUNetTrainer_warmup",
    "nnUNetTrainerAdam",
    "nnUNetTrainerBN",
    "nnUNetTrainer_probabilisticOversampling",
)
# Differ from one of the others in a value alone.
BY_NAME_ONLY = (
    "nnUNetTrainer_DASegOrd0_NoMirroring", "nnUNetTrainer_onlyMirror01_DASegOrd0", "nnUNetTrainer_onlyMirror01_DA5",
    "nnUNetTrainerDA5Segord0", "nnUNetTrainerDiceCELoss_noSmooth", "nnUNetTrainerTopk10Loss", "nnUNetTrainerTopk10LossLS01",
    "nnUNetTrainerCosAnneal", "nnUNetTrainerVanillaAdam", "nnUNetTrainerVanillaAdam1en3", "nnUNetTrainerVanillaAdam3en4",
    "nnUNetTrainerAdam1en3", "nnUNetTrainerAdam3en4", "nnUNetTrainerAdan", "nnUNetTrainerAdan1en3", "nnUNetTrainerAdan3en4",
    "nnUNetTrainerAdan1en1", "nnUNetTrainerAdanCosAnneal", "nnUNetTrainer_probabilisticOversampling_033",
    "nnUNetTrainer_probabilisticOversampling_010",
)  # fmt: skip
MIRROR_AXES = {
    "nnUNetTrainer": {"2d": (0, 1), "3d_fullres": (0, 1, 2)},
    "nnUNetTrainerNoMirroring": {"2d": None, "3d_fullres": None},
    "nnUNetTrainer_250epochs_NoMirroring": {"2d": None, "3d_fullres": None},
    "nnUNetTrainer_onlyMirror01": {"2d": (0,), "3d_fullres": (0, 1)},
    "nnUNetTrainerNoDA": {"2d": None, "3d_fullres": None},
}


@pytest.mark.parametrize("name", [*OTHERS, *BY_NAME_ONLY, *LENGTHS])
def test_is_found_by_name(name: str) -> None:
    trainer = recursive_find_trainer_class_by_name(name)
    assert trainer.__name__ == name
    assert issubclass(trainer, nnUNetTrainer)
    assert trainer.num_epochs == LENGTHS.get(name, 1000)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("name", [*OTHERS, "nnUNetTrainer_250epochs_NoMirroring"])
def test_trains_and_validates_a_step(name: str, configuration: str, tiny_training: dict[str, Path]) -> None:
    trainer = make_trainer(recursive_find_trainer_class_by_name(name), tiny_training["preprocessed"], configuration=configuration)
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs = [trainer.train_step(next(trainer.dataloader_train))]
    trainer.on_train_epoch_end(outputs)
    trainer.on_validation_epoch_start()
    results = [trainer.validation_step(next(trainer.dataloader_val))]
    assert {"loss", "tp_hard", "fp_hard", "fn_hard"} <= set(results[0])
    assert np.isfinite([outputs[0]["loss"], results[0]["loss"]]).all()
    trainer.on_validation_epoch_end(results)
    trainer.on_epoch_end()
    assert trainer.current_epoch == 1
    if name in MIRROR_AXES:
        assert trainer.inference_allowed_mirroring_axes == MIRROR_AXES[name][configuration]

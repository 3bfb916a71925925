"""Shorter and longer trainings. ``nnUNetv2_train --epochs N`` trains for any number without a class of its own."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_1epoch(nnUNetTrainer):
    num_epochs = 1


class nnUNetTrainer_5epochs(nnUNetTrainer):
    num_epochs = 5


class nnUNetTrainer_10epochs(nnUNetTrainer):
    num_epochs = 10


class nnUNetTrainer_20epochs(nnUNetTrainer):
    num_epochs = 20


class nnUNetTrainer_50epochs(nnUNetTrainer):
    num_epochs = 50


class nnUNetTrainer_100epochs(nnUNetTrainer):
    num_epochs = 100


class nnUNetTrainer_250epochs(nnUNetTrainer):
    num_epochs = 250


class nnUNetTrainer_500epochs(nnUNetTrainer):
    num_epochs = 500


class nnUNetTrainer_750epochs(nnUNetTrainer):
    num_epochs = 750


class nnUNetTrainer_2000epochs(nnUNetTrainer):
    num_epochs = 2000


class nnUNetTrainer_4000epochs(nnUNetTrainer):
    num_epochs = 4000


class nnUNetTrainer_8000epochs(nnUNetTrainer):
    num_epochs = 8000

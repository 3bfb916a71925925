"""The hooks of nnUNetTrainer."""

from __future__ import annotations

import copy
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from tiny_datasets import PLANS
from tiny_trainings import CPU, make_trainer, same, weights
from torch import nn

from nnunetv2.training.data_augmentation import adaptive_augmentation
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

Folders = dict[str, Path]


def arguments(folders: Folders, **replaced: Any) -> dict[str, Any]:
    folder = folders["preprocessed"] / "Dataset002_Plain"
    return {
        "plans": load_json(folder / f"{PLANS}.json"),
        "configuration": "3d_fullres",
        "fold": 0,
        "dataset_json": load_json(folder / "dataset.json"),
        "device": CPU,
        **replaced,
    }


def plain_trainer(folders: Folders, trainer_class: type[nnUNetTrainer] = nnUNetTrainer, **options: Any) -> Any:
    return make_trainer(trainer_class, folders["preprocessed"], **{"dataset": "Dataset002_Plain", **options})


@pytest.mark.parametrize("extra", [{}, {"continue_training": False}, {"continue_training": True}])
def test_the_caller_keeps_the_plans_as_they_were(extra: dict, tiny_training: Folders) -> None:
    values = arguments(tiny_training)
    values["plans"] = {**values["plans"], **extra}
    before = copy.deepcopy(values["plans"])
    trainer = nnUNetTrainer(**values)
    trainer.plans_manager.plans["configurations"]["3d_fullres"]["batch_size"] = 99
    assert values["plans"] == before
    assert "continue_training" not in trainer.my_init_kwargs["plans"]


def test_the_attributes_that_subclasses_rely_on_have_nnunets_defaults(tiny_training: Folders) -> None:
    trainer = nnUNetTrainer(**arguments(tiny_training))
    expected = {
        "initial_lr": 1e-2, "weight_decay": 3e-5, "oversample_foreground_percent": 0.33, "probabilistic_oversampling": False,
        "num_iterations_per_epoch": 250, "num_val_iterations_per_epoch": 50, "num_epochs": 1000, "current_epoch": 0,
        "enable_deep_supervision": True, "save_every": 50, "disable_checkpointing": False, "_best_ema": None, "was_initialized": False,
        "inference_allowed_mirroring_axes": None, "grad_scaler": None, "network": None, "optimizer": None, "lr_scheduler": None,
        "loss": None, "dataset_class": None, "is_ddp": False, "local_rank": 0, "is_cascaded": False,
    }  # fmt: skip
    assert {name: getattr(trainer, name) for name in expected} == expected
    fold = tiny_training["results"] / "Dataset002_Plain" / f"nnUNetTrainer__{PLANS}__3d_fullres" / "fold_0"
    assert Path(trainer.output_folder) == fold
    assert Path(trainer.log_file).parent == fold


def test_a_trainer_that_is_only_made_writes_no_file(tiny_training: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_csv_enabled", "1")
    trainer = nnUNetTrainer(**arguments(tiny_training))
    assert [path for path in tiny_training["results"].rglob("*") if not path.is_dir()] == []
    assert list(Path(trainer.output_folder).iterdir()) == []
    trainer.print_to_log_file("Something to say")
    log = Path(trainer.log_file).read_text()
    assert log.index("Please cite") < log.index("Something to say")
    assert log.count("Please cite") == 1


class TrainerThatWritesWhenMade(nnUNetTrainer):
    """A subclass whose constructor uses the output folder, which nnU-Net has made by then."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        Path(self.output_folder, "mine.txt").write_text("settings")


def test_constructors_of_subclasses_may_write_into_the_output_folder(tiny_training: Folders) -> None:
    trainer = TrainerThatWritesWhenMade(**arguments(tiny_training))
    assert Path(trainer.output_folder, "mine.txt").read_text() == "settings"


class TrainerWithOwnArguments(nnUNetTrainer):
    """A subclass whose constructor takes more, which nnU-Net does not allow."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda"), dropout=0.1):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.dropout = dropout
        self.num_epochs = 7


def test_subclasses_may_have_further_arguments(tiny_training: Folders) -> None:
    trainer = TrainerWithOwnArguments(**arguments(tiny_training), dropout=0.5)
    assert (trainer.dropout, trainer.num_epochs) == (0.5, 7)
    assert list(trainer.my_init_kwargs) == ["plans", "configuration", "fold", "dataset_json", "device"]


def test_a_second_initialize_is_an_error(tiny_training: Folders) -> None:
    trainer = plain_trainer(tiny_training)
    trainer.initialize()
    with pytest.raises(RuntimeError, match="twice"):
        trainer.initialize()


def test_a_step_is_sgd_with_nesterov_and_clipping_at_12(tiny_training: Folders) -> None:
    trainer = plain_trainer(tiny_training)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    plain_loss = trainer.loss
    trainer.loss = lambda output, target: 1000 * plain_loss(output, target)  # large enough for the clipping to act
    reference = copy.deepcopy(trainer.network)
    optimizer = torch.optim.SGD(reference.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    loss = trainer.loss(reference(batch["data"]), batch["target"])
    loss.backward()
    assert torch.nn.utils.clip_grad_norm_(reference.parameters(), 12) > 12
    optimizer.step()

    result = trainer.train_step(batch)

    assert list(result) == ["loss"]
    assert result["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert same(weights(trainer), dict(reference.state_dict()))


def test_the_learning_rate_follows_nnunets_polynomial(tiny_training: Folders) -> None:
    trainer = plain_trainer(tiny_training)
    trainer.initialize()
    rates = []
    for trainer.current_epoch in range(2):
        trainer.on_train_epoch_start()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == [0.01, 0.005358867312681466]


def test_scores_that_do_not_improve_stop_no_training_before_its_learning_rate_is_low(tiny_training: Folders) -> None:
    class NeverBetter(nnUNetTrainer):
        def validation_step(self, batch: dict) -> dict:
            result = super().validation_step(batch)
            return {**result, "loss": result["loss"] + 1 + self.current_epoch, "tp_hard": 0 * result["tp_hard"]}

    trainer = plain_trainer(tiny_training, NeverBetter, num_epochs=8, num_iterations_per_epoch=1)
    trainer.logger.plot_progress_png = lambda folder: None
    written = []
    trainer.save_checkpoint = lambda file: written.append((Path(file).name, trainer.current_epoch, trainer.optimizer.param_groups[0]["lr"]))
    trainer.run_training()
    rates = [0.01 * (1 - epoch / 8) ** 0.9 for epoch in range(8)]
    assert trainer.logger.get_checkpoint()["lrs"] == pytest.approx(rates)
    assert written[-1] == ("checkpoint_final.pth", 7, pytest.approx(rates[-1]))


def test_the_seed_decides_everything_and_is_drawn_if_not_given(tiny_training: Folders) -> None:
    results = []
    for seed in (3, 3, 4, None):
        random.seed(9), np.random.seed(9), torch.manual_seed(len(results))
        trainer = plain_trainer(tiny_training, seed=seed, num_epochs=1)
        trainer.disable_checkpointing = True
        trainer.run_training()
        results.append(weights(trainer))
        assert isinstance(trainer.seed, int)
    assert same(results[0], results[1])
    assert not same(results[0], results[2])
    assert not same(results[0], results[3])


class TrainerInUpstreamStyle(nnUNetTrainer):
    """Steps, optimiser and loaders as a user of nnU-Net writes them."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.num_epochs)

    def get_dataloaders(self):
        # a user's own augmenter, which yields plain dicts
        train, val = super().get_dataloaders()
        return SingleThreadedAugmenter(train.loader, None), SingleThreadedAugmenter(val.loader, None)

    def train_step(self, batch: dict) -> dict:
        data = batch["data"].to(self.device, non_blocking=True)
        target = [i.to(self.device, non_blocking=True) for i in batch["target"]]
        self.optimizer.zero_grad(set_to_none=True)
        output = self.network(data)
        loss = self.loss(output, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy(), "largest_logit": output[0].detach().max().cpu().numpy()}

    def on_train_epoch_end(self, train_outputs):
        super().on_train_epoch_end(train_outputs)
        self.keys = set(train_outputs[0])

    def on_epoch_end(self):
        super().on_epoch_end()
        self.epochs_ended = getattr(self, "epochs_ended", 0) + 1


def test_a_subclass_written_for_nnunet_trains(tiny_training: Folders) -> None:
    trainer = plain_trainer(tiny_training, TrainerInUpstreamStyle)
    trainer.run_training()
    assert trainer.epochs_ended == 2
    assert trainer.keys == {"loss", "largest_logit"}
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()


class TrainerWithOldSignature(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(
        architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        return get_network_from_plans(
            architecture_class_name,
            arch_init_kwargs,
            arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )


def test_the_network_signature_before_2_7_still_works(tiny_training: Folders) -> None:
    trainer = plain_trainer(tiny_training, TrainerWithOldSignature)
    with pytest.warns(DeprecationWarning, match="before 2.7"):
        trainer.initialize()
    assert isinstance(trainer.network, nn.Module)


class NetworkWithItsOwnHeads(nn.Module):
    """A user's network with a module of the name that our heads have."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.classification_heads = nn.ModuleDict({"mine": nn.Linear(2, 2)})

    def forward(self, image):
        return self.network(image)


def test_every_parameter_of_a_users_network_is_trained(tiny_training: Folders) -> None:
    class Trainer(nnUNetTrainer):
        def build_network_for_training(self):
            return NetworkWithItsOwnHeads(super().build_network_for_training())

    trainer = plain_trainer(tiny_training, Trainer)
    trainer.initialize()
    trained = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in trainer.network.parameters()} == trained
    assert trainer.head_parameters() == []


def test_without_deep_supervision_output_and_target_are_tensors(tiny_training: Folders) -> None:
    class Trainer(nnUNetTrainer):
        enable_deep_supervision = False

    trainer = plain_trainer(tiny_training, Trainer)
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    assert torch.is_tensor(batch["target"])
    assert np.isfinite(trainer.train_step(batch)["loss"])
    assert np.isfinite(trainer.validation_step(batch)["loss"])


def test_splits_are_nnunets_for_datasets_without_classes(tiny_training: Folders) -> None:
    train, val = plain_trainer(tiny_training, fold=1).do_split()
    from sklearn.model_selection import KFold

    identifiers = np.array([f"case_{i:03d}" for i in range(10)])
    expected = list(KFold(5, shuffle=True, random_state=12345).split(identifiers))[1]
    assert (train, val) == (list(identifiers[expected[0]]), list(identifiers[expected[1]]))
    train, val = plain_trainer(tiny_training, fold="all").do_split()
    assert train == val == list(identifiers)
    train, val = plain_trainer(tiny_training, fold=7).do_split()
    drawn = np.random.RandomState(12345 + 7).choice(10, 8, replace=False)
    assert train == list(identifiers[drawn])
    assert sorted(train + val) == list(identifiers)


def test_a_split_with_unknown_cases_is_refused(tiny_training: Folders) -> None:
    class Trainer(nnUNetTrainer):
        def _splits(self, identifiers, groups):
            return [{"train": ["case_000", "nobody"], "val": ["case_001"]}]

    with pytest.raises(FileNotFoundError, match="1 cases.*nobody"):
        plain_trainer(tiny_training, Trainer).do_split()


def test_cases_on_both_sides_are_pointed_out(tiny_training: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    class Trainer(nnUNetTrainer):
        def _splits(self, identifiers, groups):
            return [{"train": ["case_000", "case_001"], "val": ["case_001"]}]

    plain_trainer(tiny_training, Trainer).do_split()
    assert "WARNING: 1 cases stand in the training and in the validation set" in capsys.readouterr().out


class LabelManagerStub:
    """Only what counting needs."""

    def __init__(self, *, has_regions: bool, ignore_label: int | None) -> None:
        self.has_regions, self.ignore_label = has_regions, ignore_label


@pytest.mark.parametrize("ignored", [False, True])
def test_hard_counts_of_labels_leave_out_background_and_ignored_voxels(ignored: bool, tiny_training: Folders) -> None:
    trainer = nnUNetTrainer(**arguments(tiny_training))
    trainer.label_manager = LabelManagerStub(has_regions=False, ignore_label=3 if ignored else None)
    predicted = torch.tensor([[0, 1, 1, 2, 2, 0]])
    target = torch.tensor([[0, 1, 2, 2, 2, 3 if ignored else 1]])
    logits = torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float()
    tp, fp, fn = trainer.hard_counts(logits, target[:, None])
    assert tp.tolist() == [1, 2]
    assert fp.tolist() == [1, 0]
    assert fn.tolist() == [0 if ignored else 1, 1]


def test_the_segmentation_loss_is_cross_entropy_minus_the_dice_of_the_foreground(tiny_training: Folders) -> None:
    trainer = nnUNetTrainer(**arguments(tiny_training))
    trainer.enable_deep_supervision = False
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    target = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=generator)
    target[:, :, :3] = 0  # mostly background, as in images
    probabilities, truth = logits.softmax(1), torch.nn.functional.one_hot(target[:, 0], 3).movedim(-1, 1)
    overlap, total = (probabilities * truth).sum((2, 3, 4)), (probabilities + truth).sum((2, 3, 4))
    expected = torch.nn.functional.cross_entropy(logits, target[:, 0]) - (2 * overlap / total)[:, 1:].mean()
    assert trainer._build_loss()(logits, target).item() == pytest.approx(expected.item(), abs=1e-5)


def test_hard_counts_of_regions_use_every_channel(tiny_training: Folders) -> None:
    trainer = nnUNetTrainer(**arguments(tiny_training))
    trainer.label_manager = LabelManagerStub(has_regions=True, ignore_label=9)
    logits = torch.tensor([[[1.0, 1.0, -1.0, 1.0], [-1.0, 1.0, 1.0, 1.0]]])
    target = torch.tensor([[[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]]], dtype=torch.bool)  # last channel: ignored
    tp, fp, fn = trainer.hard_counts(logits, target)
    assert tp.tolist() == [2, 1]
    assert fp.tolist() == [0, 1]
    assert fn.tolist() == [1, 0]


class FailingCompiler(nnUNetTrainer):
    """Compiles on the CPU, with a backend that cannot."""

    def _do_i_compile(self) -> bool:
        return not self._compiler_failed

    def initialize(self) -> None:
        real = torch.compile

        def backend(graph, inputs):
            raise RuntimeError("no C compiler")

        torch.compile = lambda module: real(module, backend=backend)
        try:
            super().initialize()
        finally:
            torch.compile = real


def test_a_compiler_that_fails_is_reported_and_left_out(tiny_training: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    compiled = plain_trainer(tiny_training, FailingCompiler)
    compiled.run_training()
    output = capsys.readouterr().out
    assert "torch.compile failed, the training goes on without it" in output
    assert "no C compiler" in output
    eager = plain_trainer(tiny_training, seed=0)
    eager.run_training()
    assert same(weights(compiled), weights(eager))


def test_without_the_compiler_the_step_has_the_memory_of_the_failed_attempt(tiny_training: Folders) -> None:
    trainer = plain_trainer(tiny_training, FailingCompiler)
    trainer.initialize()
    attempts: list[weakref.ref] = []

    def step(batch: dict) -> dict:
        attempt = torch.zeros(3)
        attempts.append(weakref.ref(attempt))
        if len(attempts) == 1:
            trainer.network(batch)  # compiles
        return {"first attempt is freed": attempts[0]() is None}

    image = torch.zeros(1, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    assert trainer.run_step(step, image) == {"first attempt is freed": True}


def test_an_error_of_the_step_itself_is_not_taken_for_the_compilers(tiny_training: Folders) -> None:
    class Trainer(nnUNetTrainer):
        def train_step(self, batch):
            raise RuntimeError("my mistake")

    with pytest.raises(RuntimeError, match="my mistake"):
        plain_trainer(tiny_training, Trainer).run_training()


def test_a_loss_that_is_no_number_leaves_the_weights_alone(tiny_training: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = plain_trainer(tiny_training)
    trainer.on_train_start()
    before = weights(trainer)
    batch = next(trainer.dataloader_train)
    batch["data"][:] = float("nan")
    trainer.train_step(batch)
    assert same(before, weights(trainer))
    assert str(batch["keys"][0]) in capsys.readouterr().out


def test_images_augmented_on_the_device_are_the_same_up_to_rounding(tiny_training: Folders, monkeypatch) -> None:
    class OnTheDevice(nnUNetTrainer):
        def augmentation_place(self) -> str:
            return "cuda"  # which is this trainer's device

    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    batches = []
    for trainer_class in (nnUNetTrainer, OnTheDevice):
        trainer = plain_trainer(tiny_training, trainer_class)
        trainer.initialize()
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
        batches.append([next(trainer.dataloader_train) for _ in range(4)])
        assert "loss" in trainer.train_step(batches[-1][0])
        trainer.stop_dataloaders()
    for usual, later in zip(*batches):
        assert same(usual["target"], later["target"]) and list(usual["keys"]) == list(later["keys"])
        torch.testing.assert_close(later["data"], usual["data"], rtol=1e-4, atol=1e-4)


def test_a_training_that_waits_for_data_moves_the_augmentation_and_goes_on_as_before(tiny_training: Folders, monkeypatch) -> None:
    class WhereItIsFaster(nnUNetTrainer):
        def augmentation_place(self) -> str:
            return "auto"

    monkeypatch.setattr(adaptive_augmentation, "WORTH_MOVING", 0.0)
    losses = []
    for trainer_class in (nnUNetTrainer, WhereItIsFaster):
        trainer = plain_trainer(tiny_training, trainer_class)
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 6, 2, 1
        trainer.run_training()
        losses.append([trainer.logger.get_value("train_losses", epoch) for epoch in range(6)])
        log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
        assert ("augments the images" in log) == (trainer_class is WhereItIsFaster)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_gpu_that_is_not_used_cannot_augment(tiny_training: Folders, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_augmentation_device", "cuda")
    trainer = plain_trainer(tiny_training)
    trainer.initialize()
    with pytest.raises(ValueError, match="runs on cpu"):
        trainer.get_dataloaders()

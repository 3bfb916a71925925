"""The API behind ``nnUNetv2_train``: device, trainer, resume, training, validation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os.path import isfile, join
from pathlib import Path

import torch

from nnunetv2.evaluation.validation_tables import FINAL_CHECKPOINT, validation_folder_name
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.settings import check_preprocessed_data
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.processes import cleanup_ddp, find_free_network_port, in_every_process, setup_ddp  # noqa: F401, nnU-Net has some here
from nnunetv2.training.checkpointing import newest_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.default_n_proc_DA import cpus_of_process
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.memory_allocator import keep_freed_memory
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager, check_plans_fit

# nnU-Net trains with 250 steps and 50 validation steps in an epoch.
TRAINING_STEPS_PER_VALIDATION_STEP = 5
DEVICES = ("cpu", "cuda", "mps")
SLOW_TORCH = "2.9."  # its 3D convolutions are slow under automatic mixed precision


@in_every_process
def run_training(
    dataset_name_or_id: str | int,
    configuration: str,
    fold: int | str,
    trainer_class_name: str = "nnUNetTrainer",
    plans_identifier: str = "nnUNetPlans",
    pretrained_weights: str | None = None,
    num_gpus: int = 1,
    export_validation_probabilities: bool = False,
    continue_training: bool = False,
    only_run_validation: bool = False,
    disable_checkpointing: bool = False,
    val_with_best: bool = False,
    device: torch.device = torch.device("cuda"),
    *,
    seed: int | None = None,
    num_epochs: int | None = None,
    num_iterations_per_epoch: int | None = None,
    head_refit: str | None = None,
    only_refit_heads: bool = False,
    previous_stage_trainer: str | None = None,
    further_validated_checkpoints: Sequence[str] = (),
) -> None:
    """Train one fold, then predict and score its validation cases.

    Args:
        dataset_name_or_id: Dataset, already preprocessed.
        configuration: Name of a configuration of the plans.
        fold: Number of the fold, or ``all``.
        trainer_class_name: Class below ``nnunetv2.training.nnUNetTrainer`` or in ``nnUNet_extTrainer``.
        plans_identifier: Name of the plans.
        pretrained_weights: Checkpoint to start from; not with ``continue_training``.
        num_gpus: Processes to start on this machine, each with a GPU of its own, or on the CPU; under torchrun 1.
        export_validation_probabilities: Keep the probabilities of the validation cases, for ensembles.
        continue_training: Go on from the newest checkpoint that can be read.
        only_run_validation: Skip the training; needs ``checkpoint_final.pth``, or the best one with ``val_with_best``.
        disable_checkpointing: Write no checkpoints.
        val_with_best: Validate with ``checkpoint_best.pth``.
        device: Where to train.
        seed: Makes the training repeatable; on the CPU exactly.
        num_epochs: Overrides the trainer's number of epochs.
        num_iterations_per_epoch: Overrides the trainer's steps per epoch; validation steps are a fifth.
        head_refit: Overrides how the trainer refits classification heads: ``cases``, ``patches`` or ``none``.
        only_refit_heads: Skip the training and refit the heads of the finished one, or of the network in ``pretrained_weights``.
        previous_stage_trainer: In a cascade, the trainer whose first stage this one is trained on; None: ``trainer_class_name``.
        further_validated_checkpoints: Names of checkpoints of this training, each validated into a folder ``validation_<name>`` of its own,
            after everything else, or with ``only_run_validation`` alone.
    """
    device = torch.device(device)
    fold = _fold(fold)
    _check_options(num_gpus, continue_training, only_run_validation, disable_checkpointing, val_with_best, pretrained_weights)
    if only_refit_heads:
        _check_options_of_refit(
            {
                "--c": continue_training,
                "--val": only_run_validation,
                "--val_best": val_with_best,
                "--disable_checkpointing": disable_checkpointing,
            },
            head_refit,
        )
    for checkpoint in further_validated_checkpoints:
        validation_folder_name(checkpoint)  # raises for what is no name of a checkpoint
    if further_validated_checkpoints and disable_checkpointing:
        raise ValueError("-val_chk needs checkpoints, which --disable_checkpointing does not write.")
    if further_validated_checkpoints:
        check_validates_further(recursive_find_trainer_class_by_name(trainer_class_name))
    _prepare_device(device)
    # Loggers add the scores of a repeated validation to what they have of the training.
    goes_on = continue_training or only_run_validation or only_refit_heads
    trainer = get_trainer_from_args(dataset_name_or_id, configuration, fold, trainer_class_name, plans_identifier, goes_on, device)
    trainer.disable_checkpointing = disable_checkpointing
    trainer.use_run_options(_run_options(num_epochs, num_iterations_per_epoch))
    if seed is not None:
        trainer.seed = seed
    _set_head_refit(trainer, head_refit, only_refit_heads)
    if previous_stage_trainer is not None:
        trainer.use_previous_stage_of(previous_stage_trainer)
    if warning := slow_torch_warning(device):
        trainer.print_to_log_file(warning)
    if only_refit_heads:
        refit_heads_alone(trainer, pretrained_weights)
        trainer.perform_actual_validation(export_validation_probabilities)
        validate_further(trainer, further_validated_checkpoints, export_validation_probabilities)
        return
    if only_run_validation and further_validated_checkpoints and not val_with_best:
        validate_further(trainer, further_validated_checkpoints, export_validation_probabilities)
        return
    if not (only_run_validation and val_with_best):
        maybe_load_checkpoint(trainer, continue_training, only_run_validation, pretrained_weights)
    if not only_run_validation:
        trainer.run_training()
    if val_with_best:
        trainer.validated_checkpoint = "checkpoint_best.pth"
        trainer.print_to_log_file(f"Validating {trainer.validated_checkpoint}; its results replace those of checkpoint_final.pth.")
        trainer.load_checkpoint(join(trainer.output_folder, trainer.validated_checkpoint))
    trainer.perform_actual_validation(export_validation_probabilities)
    validate_further(trainer, further_validated_checkpoints, export_validation_probabilities)


def validate_further(trainer: nnUNetTrainer, checkpoints: Sequence[str], export_validation_probabilities: bool = False) -> None:
    """Validate checkpoints of a training, each into a folder of its own beside ``validation``.

    Raises:
        FileNotFoundError: If one does not exist; before anything is predicted.
        ValueError: If the trainer validates in a way of its own, see :func:`check_validates_further`.
    """
    if checkpoints:
        check_validates_further(type(trainer))
    missing = [name for name in checkpoints if not isfile(join(trainer.output_folder, name))]
    if missing:
        found = sorted(path.name for path in Path(trainer.output_folder).glob("checkpoint_*.pth"))
        raise FileNotFoundError(
            f"{trainer.output_folder} has no {', '.join(missing)}. -val_chk needs checkpoints of this training: found {', '.join(found) or 'none'}."
        )
    for name in checkpoints:
        trainer.validated_checkpoint = None if name == FINAL_CHECKPOINT else name
        trainer.validation_name = validation_folder_name(name)
        trainer.load_checkpoint(join(trainer.output_folder, name))
        trainer.print_to_log_file(f"Validating {name} into {trainer.validation_name}")
        trainer.perform_actual_validation(export_validation_probabilities)


def check_validates_further(trainer_class: type) -> None:
    """Raise ValueError unless the trainer's ``perform_actual_validation`` writes where ``validation_name`` says.

    One that was written for nnU-Net writes to ``validation`` whatever the checkpoint, and would replace the results of the final one.
    """
    owner = next(c for c in trainer_class.__mro__ if "perform_actual_validation" in vars(c))
    # Of the class that has the method, not inherited: what a class says holds for its own method.
    if not vars(owner).get("validates_into_validation_name", False):
        raise ValueError(
            f"-val_chk: {trainer_class.__name__} validates in a way of its own ({owner.__name__}.perform_actual_validation), which may replace "
            "the results of checkpoint_final.pth by those of another checkpoint. Leave out -val_chk; or have the method write to "
            "join(self.output_folder, self.validation_name), and set validates_into_validation_name = True in the same class."
        )


def slow_torch_warning(device: torch.device) -> str:
    """What to tell users of a torch release that is slow on this device; empty for others."""
    if device.type != "cuda" or not torch.__version__.startswith(SLOW_TORCH):
        return ""
    return (
        f"WARNING: torch {torch.__version__} is known to train 3D networks slowly in mixed precision. Install another release, such as 2.8."
    )


def _set_head_refit(trainer: nnUNetTrainer, head_refit: str | None, only_refit_heads: bool) -> None:
    """Hand the options over to a trainer that knows what to do with them."""
    if head_refit is None and not only_refit_heads:
        return
    if not hasattr(trainer, "refit_heads"):
        raise ValueError(
            f"{type(trainer).__name__} has no classification heads to refit. Use -tr nnUNetTrainerMultitask, also on the network of another "
            "trainer (-pretrained_weights)."
        )
    # Set also where it is the trainer's own: what is set wins over what a checkpoint remembers of its run.
    trainer.head_refit = head_refit or trainer.head_refit


def refit_heads_alone(trainer: nnUNetTrainer, pretrained_weights: str | None) -> None:
    """Refit the heads on a finished segmentation network and write ``checkpoint_final.pth``.

    Args:
        trainer: Of case-level classes.
        pretrained_weights: Checkpoint of any training with the same segmentation network, also without heads; None: the finished training
            of this fold.

    Raises:
        FileNotFoundError: Without ``pretrained_weights``, if this fold has no finished training.
        FileExistsError: With ``pretrained_weights``, if it has one, which would be lost.
    """
    final = Path(trainer.output_folder, "checkpoint_final.pth")
    if pretrained_weights is None:
        if not final.is_file():
            raise FileNotFoundError(
                f"{final} does not exist. --refit_heads needs the finished training of this fold, or another one's checkpoint "
                "(-pretrained_weights)."
            )
        trainer.load_checkpoint(str(final))
    else:
        if final.is_file():
            raise FileExistsError(
                f"{final} holds a finished training, which new heads on other weights would replace. Leave out -pretrained_weights to refit its "
                "own heads, or move the folder away."
            )
        trainer.initialize()
        trainer.load_segmentation(pretrained_weights)
        trainer.write_model_files()
    trainer.refit_heads()
    trainer.save_finished(str(final))


def get_trainer_from_args(
    dataset_name_or_id: int | str,
    configuration: str,
    fold: int | str,
    trainer_name: str = "nnUNetTrainer",
    plans_identifier: str = "nnUNetPlans",
    continue_training: bool = False,
    device: torch.device = torch.device("cuda"),
) -> nnUNetTrainer:
    """The trainer of a preprocessed dataset.

    Raises:
        FileNotFoundError: If the dataset was not planned with these plans.
        ValueError: If the plans belong to another dataset, lack the configuration, or the cases were preprocessed by other plans.
        RuntimeError: If there is no such trainer.
    """
    trainer_class = recursive_find_trainer_class_by_name(trainer_name)
    dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
    folder = join(nnUNet_preprocessed, dataset_name)
    plans_file, dataset_file = join(folder, f"{plans_identifier}.json"), join(folder, "dataset.json")
    for file in (plans_file, dataset_file):
        if not isfile(file):
            found = sorted(path.stem for path in Path(folder).glob("*Plans*.json") if not path.name.endswith(".settings.json"))
            raise FileNotFoundError(
                f"{file} does not exist. Run nnUNetv2_plan_and_preprocess -d {dataset_name_or_id} first"
                + (f", or choose other plans with -p: found {', '.join(found)}." if found else ".")
            )
    plans = load_json(plans_file)
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"The plans {plans_identifier} of {dataset_name} have no configuration {configuration!r}. Found: "
            f"{', '.join(sorted(plans['configurations']))}."
        )
    dataset_json = load_json(dataset_file)
    plans_manager = PlansManager(plans)
    check_plans_fit(plans_manager, dataset_name, dataset_json, [configuration])
    check_preprocessed_data(folder, plans_manager, plans_manager.get_configuration(configuration))
    plans["continue_training"] = continue_training
    return trainer_class(plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device)


def maybe_load_checkpoint(
    nnunet_trainer: nnUNetTrainer, continue_training: bool, validation_only: bool, pretrained_weights_file: str | None = None
) -> None:
    """Load what the options ask for: the newest checkpoint, the final one, pretrained weights, or nothing.

    Raises:
        RuntimeError: If asked to continue and to start from pretrained weights at once.
        FileNotFoundError: If there is nothing to validate.
        CheckpointError: If there are checkpoints to continue from, but none that can be read.
    """
    if continue_training and pretrained_weights_file is not None:
        raise RuntimeError(
            "Continuing a training and starting from pretrained weights exclude each other. Leave out --c or -pretrained_weights."
        )
    if continue_training:
        path, checkpoint = newest_checkpoint(nnunet_trainer.output_folder, nnunet_trainer.print_to_log_file)
        if checkpoint is None:
            nnunet_trainer.print_to_log_file(
                f"WARNING: there is no checkpoint in {nnunet_trainer.output_folder} to continue from. A new training starts."
            )
            return
        nnunet_trainer.print_to_log_file(f"Continuing from {path}, after {checkpoint['current_epoch']} epochs")
        nnunet_trainer.load_checkpoint(str(path))
    elif validation_only:
        final = join(nnunet_trainer.output_folder, "checkpoint_final.pth")
        if not isfile(final):
            raise FileNotFoundError(f"{final} does not exist. Validation alone needs a finished training; continue it with --c.")
        nnunet_trainer.load_checkpoint(final)
    elif pretrained_weights_file is not None:
        if not nnunet_trainer.was_initialized:
            nnunet_trainer.initialize()
        load_pretrained_weights(nnunet_trainer.network, pretrained_weights_file, report=nnunet_trainer.print_to_log_file)


def _fold(fold: int | str) -> int | str:
    """The fold as a number or ``all``."""
    if fold == "all":
        return fold
    try:
        number = int(fold)
    except ValueError:
        raise ValueError(f"Fold {fold!r} is neither a number nor 'all'.") from None
    if number < 0:
        raise ValueError(f"Fold {number} does not exist; folds count from 0.")
    return number


def _check_options(
    num_gpus: int,
    continue_training: bool,
    only_run_validation: bool,
    disable_checkpointing: bool,
    val_with_best: bool,
    pretrained_weights: str | None,
) -> None:
    """Options that exclude each other or cannot be; checked before a trainer writes its folder."""
    if num_gpus < 1:
        raise ValueError(f"-num_gpus {num_gpus}: a training needs one GPU (or -device cpu).")
    if continue_training and only_run_validation:
        raise ValueError("--c and --val exclude each other: one continues the training, the other skips it.")
    if continue_training and pretrained_weights is not None:
        raise ValueError("--c and -pretrained_weights exclude each other: one continues a training, the other starts one.")
    if pretrained_weights is not None and not isfile(pretrained_weights):
        raise FileNotFoundError(f"{pretrained_weights} does not exist. Give -pretrained_weights a checkpoint of nnU-Net.")
    if val_with_best and disable_checkpointing:
        raise ValueError("--val_best needs checkpoint_best.pth, which --disable_checkpointing does not write.")


def _check_options_of_refit(others: Mapping[str, bool], head_refit: str | None) -> None:
    """Options that mean nothing where only heads are refitted, by name whether they were given."""
    given = [name for name, is_given in others.items() if is_given]
    if given:
        raise ValueError(
            f"--refit_heads refits the heads of a finished training, writes checkpoint_final.pth and validates it, so it excludes "
            f"{', '.join(given)}. Leave {'it' if len(given) == 1 else 'them'} out."
        )
    if head_refit == "none":
        raise ValueError("--refit_heads and --head_refit none exclude each other. Give --head_refit cases or patches.")


def _run_options(num_epochs: int | None, num_iterations_per_epoch: int | None) -> dict[str, int]:
    """The lengths that were asked for, checked."""
    options = {}
    for name, value in (("epochs", num_epochs), ("iterations_per_epoch", num_iterations_per_epoch)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: give 1 or more.")
    if num_epochs is not None:
        options["num_epochs"] = num_epochs
    if num_iterations_per_epoch is not None:
        options["num_iterations_per_epoch"] = num_iterations_per_epoch
        options["num_val_iterations_per_epoch"] = max(1, num_iterations_per_epoch // TRAINING_STEPS_PER_VALIDATION_STEP)
    return options


def _prepare_device(device: torch.device) -> None:
    """Check that the device is there, and set the number of threads that suits it."""
    if device.type not in DEVICES:
        raise ValueError(f"Device {device} is not supported; choose one of {', '.join(DEVICES)}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("-device cuda, but torch finds no CUDA device. Install a torch with CUDA, or train with -device cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RuntimeError("-device mps, but torch finds no Metal device. Train with -device cpu.")
    if device.type == "cpu":
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cpus_of_process())
    elif device.type == "cuda":
        torch.set_num_threads(1)
        try:
            torch.set_num_interop_threads(1)
        except RuntimeError:  # only possible before the first parallel work of a process
            pass
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True


def run_ddp(
    rank: int,
    dataset_name_or_id: str | int,
    configuration: str,
    fold: int | str,
    tr: str,
    p: str,
    disable_checkpointing: bool,
    c: bool,
    val: bool,
    pretrained_weights: str | None,
    npz: bool,
    val_with_best: bool,
    world_size: int,
) -> None:
    """One of several processes on this machine, as nnU-Net starts them; ``MASTER_PORT`` says where they meet."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size))
    os.environ.setdefault("MASTER_ADDR", "localhost")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = (pretrained_weights, world_size, npz, c, val, disable_checkpointing, val_with_best)
    run_training(dataset_name_or_id, configuration, fold, tr, p, *options, device=device)


def run_training_entry() -> None:
    """Entry point of nnU-Net's name; the command lives in ``nnunetv2.cli.train``."""
    from nnunetv2.cli.train import main

    main()


if __name__ == "__main__":  # torchrun -m nnunetv2.run.run_training
    run_training_entry()

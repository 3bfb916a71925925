"""nnUNetTrainer: the story of a training, hook by hook.

A run goes ``initialize`` -> ``on_train_start`` -> epochs -> ``on_train_end``; afterwards ``perform_actual_validation`` predicts the
validation cases as a user would. Users subclass it and override a hook or a value; nothing else needs to change. Segmentation alone
is the joint model with an empty mapping of classification heads: ``build_heads`` returns none here.
"""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import cached_property
from os.path import join
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2.network_architecture.joint_network import JointNetwork, JointOutput, as_joint_output, with_classification_heads
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.training.checkpointing import (
    load_checkpoint_file,
    restore_rng_state,
    rng_state,
    save_checkpoint_file,
)
from nnunetv2.training.data_augmentation.patch_geometry import (
    INITIAL_PATCH_SCALE_RANGE,
    blocked_patch_axes,
    restrict_to_flip_insensitive,
    rotation_and_mirroring,
)
from nnunetv2.training.dataloading.batch import Batch, as_batch
from nnunetv2.training.distributed import (
    batch_share_of_rank,
    device_of_process,
    distributed_network,
    is_distributed,
    number_of_processes,
    of_all_processes,
    of_first_process,
    outputs_of_all_processes,
    process_rank,
    wait_for_all_processes,
    with_synchronized_batch_norm,
)
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper, deep_supervision_weights
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, get_tp_fp_fn_tn
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.epoch_class_scores import EpochClassScores, EpochScores
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.compilation import compiled, is_compiled, is_compiler_error, reason_not_to_compile, unwrapped_network
from nnunetv2.utilities.crossval_split import check_splits, generate_crossval_split, generate_stratified_split, split_beyond_file
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.file_io import NO_SPACE_ERRORS, copy_file, load_json, save_json
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.get_network_from_plans import build_trainers_network, get_network_from_plans
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask, load_case_groups
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.versions import package_version

# What loads and augments is imported where it is used: predictions import this module, and have no need of the large libraries behind.
if TYPE_CHECKING:
    from nnunetv2.training.dataloading.batch_stream import BatchStream
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

GRADIENT_NORM = 12
LATEST_CHECKPOINT_SECONDS = 10 * 60  # what a run may lose at most when the machine disconnects
SEED_LIMIT = 2**31 - 1
SEED_OFFSET_OF_VALIDATION = 1_000_003  # so that training and validation patches are drawn independently
# Named in checkpoints, so that a continued training keeps the options it was started with.
RUN_OPTIONS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
ENTRIES_ABOUT_CASES = ("case_labels", "case_groups")  # of dataset.json; loggers may send what they get to somebody else's server
CITATION = (
    "The method is nnU-Net. Please cite it:\n"
    "Isensee, F., Jaeger, P. F., Kohl, S. A., Petersen, J., & Maier-Hein, K. H. (2021). nnU-Net: a self-configuring method for deep "
    "learning-based biomedical image segmentation. Nature Methods, 18(2), 203-211.\n"
)


class nnUNetTrainer:
    """Trains one fold of one configuration.

    Args:
        plans: Content of the plans file. An entry ``continue_training`` is optional: it tells loggers to resume. Not modified.
        configuration: Name of a configuration in the plans, e.g. ``3d_fullres``.
        fold: Number of the fold, or ``"all"``.
        dataset_json: Content of ``dataset.json``.
        device: Where to train; in a process group every process has a GPU of its own.
    """

    initial_lr: float = 1e-2
    weight_decay: float = 3e-5
    oversample_foreground_percent: float = 0.33
    probabilistic_oversampling: bool = False
    num_iterations_per_epoch: int = 250
    num_val_iterations_per_epoch: int = 50
    num_epochs: int = 1000
    enable_deep_supervision: bool = True
    dice_smooth: float = 1e-5  # added to numerator and denominator of the Dice loss
    voxel_loss_weight: float = 1  # of the cross-entropy beside the Dice loss
    initial_patch_scale_range: tuple[float, float] = INITIAL_PATCH_SCALE_RANGE  # of scalings that a patch is read large enough for
    save_every: int = 50  # epochs between two writings of checkpoint_latest.pth
    save_every_seconds: float = LATEST_CHECKPOINT_SECONDS  # and the time between two, whichever comes first
    disable_checkpointing: bool = False
    # Several processes: whether steps leave some weights of the network without a gradient. None: only without deep supervision, where
    # nnU-Net's decoders keep the layers of the coarser outputs.
    find_unused_parameters: bool | None = None
    seed: int | None = None  # None: one is drawn and written to the log
    # That perform_actual_validation of this class writes where validation_name says; a class that overrides the method has to say so anew.
    validates_into_validation_name = True

    def __init__(
        self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device = torch.device("cuda")
    ) -> None:
        plans = copy.deepcopy(plans)
        continue_training = bool(plans.pop("continue_training", False))
        self.my_init_kwargs = {
            "plans": plans,
            "configuration": configuration,
            "fold": fold,
            "dataset_json": dataset_json,
            "device": device,
        }
        self.is_ddp = is_distributed()
        self.local_rank = process_rank()  # among all machines, as in nnU-Net: 0 is the process that writes
        self.device = device_of_process(torch.device(device))

        self.plans_manager = PlansManager(plans)
        self.configuration_manager: ConfigurationManager = self.plans_manager.get_configuration(configuration)
        self.configuration_name = configuration
        self.dataset_json = dataset_json
        self.fold = fold
        self.label_manager = self.plans_manager.get_label_manager(dataset_json)
        self.classification_tasks: dict[str, ClassificationTask] = {}  # those that a head is trained for

        dataset_name, trainer_name, plans_name = self.plans_manager.dataset_name, type(self).__name__, self.plans_manager.plans_name
        self.preprocessed_dataset_folder_base = join(nnUNet_preprocessed, dataset_name)
        self.preprocessed_dataset_folder = join(self.preprocessed_dataset_folder_base, self.configuration_manager.data_identifier)
        self.output_folder_base = join(nnUNet_results, dataset_name, f"{trainer_name}__{plans_name}__{configuration}")
        self.output_folder = join(self.output_folder_base, f"fold_{fold}")
        self.is_cascaded = self.configuration_manager.previous_stage_name is not None
        self.folder_with_segs_from_previous_stage = self._previous_stage_folder(trainer_name) if self.is_cascaded else None

        self.current_epoch = 0
        self.inference_allowed_mirroring_axes: tuple[int, ...] | None = None  # known once the data loaders are configured
        self._best_ema: float | None = None
        self.ema_case_score: float | None = None  # None without heads
        self._best_ema_case_score: float | None = None
        self._best_joint: float | None = None
        self.was_initialized = False
        self.grad_scaler = torch.amp.GradScaler("cuda") if self.device.type == "cuda" else None
        self.num_input_channels: int | None = None
        self.batch_size = self.configuration_manager.batch_size
        self.network: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.lr_scheduler: Any = None
        self.head_optimizer: torch.optim.Optimizer | None = None
        self.loss: Callable | None = None
        self.classification_loss: Callable | None = None
        self.class_scores: EpochClassScores | None = None
        self.dataset_class: type | None = None
        self.dataloader_train = self.dataloader_val = None
        self.validated_checkpoint: str | None = None  # named in summary.json if it is not the final one
        self.validation_name = "validation"  # folder of the validation; further checkpoints have one each
        self.run_options: dict[str, int] = {}  # the RUN_OPTIONS that were asked for, as opposed to those of the class
        self.writes_splits = True  # splits_final.json, if absent; off where a training is only measured
        self._seeded = False
        self._compiler_failed = False
        self._pending_rng_state: Mapping | None = None
        self._random_states_of_ranks: list[dict[str, Any]] = []  # after the last epoch; empty with one process
        self._last_save_time = time.monotonic()

        now = datetime.now()
        self.log_file = join(self.output_folder, f"training_log_{now.year}_{now.month}_{now.day}_{now.strftime('%H_%M_%S')}.txt")
        self._log_has_begun = False
        self._continues_training = continue_training
        # As in nnU-Net: constructors of subclasses write into it. Logger and log file begin at their first use.
        os.makedirs(self.output_folder, exist_ok=True)

    @cached_property
    def logger(self) -> MetaLogger:
        """The curves. Made at its first use, so that a trainer which is only looked at leaves no file behind, here or on a server."""
        os.makedirs(self.output_folder, exist_ok=True)
        logger = MetaLogger(self.output_folder, self._continues_training, warn=lambda text: self.print_to_log_file(f"WARNING: {text}"))
        shown = {key: value for key, value in self.dataset_json.items() if key not in ENTRIES_ABOUT_CASES}
        settings = {"plans": self.my_init_kwargs["plans"], "configuration": self.configuration_name, "fold": self.fold, "dataset": shown}
        logger.update_config(settings)
        return logger

    # ------------------------------------------------------------------ setting up

    def initialize(self) -> None:
        """Build network, optimisers and loss.

        Raises:
            RuntimeError: If called twice.
        """
        if self.was_initialized:
            raise RuntimeError("initialize was called twice. Make a new trainer for a new training.")
        self.settle_seed()
        self._set_batch_size_and_oversample()
        self.num_input_channels = determine_num_input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)
        self.network = self.build_network_for_training().to(self.device)
        # Before the heads are there, so that self.network.parameters() means the same here as in any nnU-Net trainer.
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.network = with_classification_heads(self.network, self.build_heads()).to(self.device)
        self.head_optimizer = self.configure_head_optimizer()
        if self.is_ddp:
            self.network = with_synchronized_batch_norm(self.network, self.device)
        if self._do_i_compile():
            self.print_to_log_file("Using torch.compile...")
            self.network = compiled(self.network)
        if self.is_ddp:
            unused = self.find_unused_parameters
            self.network = distributed_network(self.network, self.device, not self.enable_deep_supervision if unused is None else unused)
            self.draw_independently()
        self.loss = self._build_loss()
        self.classification_loss = self.build_classification_loss()
        self.class_scores = self.build_class_scores()
        self.dataset_class = self.stored_dataset_class()
        self.logger.update_config({"hparas": self.hyper_parameters()})
        self.was_initialized = True

    def settle_seed(self) -> None:
        """Seed everything, once; without a seed one is drawn, so that every run can be repeated and continued exactly."""
        if self._seeded:
            return
        drawn = self.seed is None
        if drawn:
            # From torch's generator, so that a caller's own torch.manual_seed decides.
            self.seed = int(torch.randint(SEED_LIMIT, (1,)))
        self.seed = of_first_process(self.seed)
        random.seed(self.seed)
        np.random.seed(self.seed)
        torch.manual_seed(self.seed)
        self._seeded = True
        self.print_to_log_file(f"Seed {self.seed}" + (" (drawn; --seed sets it)" if drawn else ""))

    def draw_independently(self, *position: int) -> None:
        """Give the global random states of this process, unless it is the first one, others than those of the other processes.

        Args:
            position: Further numbers that tell this moment from others.
        """
        if self.local_rank == 0:
            return
        seed = int(np.random.SeedSequence((self.seed, self.local_rank, *position)).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def hyper_parameters(self) -> dict[str, Any]:
        """What loggers show beside the curves."""
        names = ("initial_lr", "weight_decay", "oversample_foreground_percent", "probabilistic_oversampling", *RUN_OPTIONS)
        return {name: getattr(self, name) for name in (*names, "enable_deep_supervision", "batch_size", "seed")}

    def _set_batch_size_and_oversample(self) -> None:
        """The share of this process in the batch of the plans."""
        world_size, batch_size = number_of_processes(), self.configuration_manager.batch_size
        if world_size == 1:
            self.batch_size = batch_size
            return
        self.batch_size, oversampling = batch_share_of_rank(batch_size, self.oversample_foreground_percent, self.local_rank, world_size)
        if not self.probabilistic_oversampling:  # by chance, every sample is forced equally often
            self.oversample_foreground_percent = oversampling
        shares = sorted(set(of_all_processes(self.batch_size)))
        self.print_to_log_file(f"{world_size} processes share batches of {batch_size}, each has {' or '.join(map(str, shares))}")
        if len(shares) > 1:
            self.print_to_log_file(
                "WARNING: the shares are not equal, so samples of processes with fewer count more. Use a number of processes that divides the "
                "batch size."
            )

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The segmentation network, for training and for prediction alike."""
        return get_network_from_plans(
            configuration_manager.network_arch_class_name,
            configuration_manager.network_arch_init_kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            allow_init=True,
            deep_supervision=enable_deep_supervision,
        )

    def build_network_for_training(self) -> nn.Module:
        """Call :meth:`build_network_architecture` in the signature that this class gives it."""
        return build_trainers_network(
            self.build_network_architecture,
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        )

    def build_heads(self) -> dict[str, nn.Module]:
        """Classification heads by task; ``self.network`` is the segmentation network. None here."""
        return {}

    def classification_entry(self) -> dict | None:
        """Which heads the network has, for the checkpoint; None without any."""
        return None

    def refitted_heads_entry(self) -> dict | None:
        """Heads that were trained after the segmentation, for the checkpoint; None without any."""
        return None

    def build_classification_loss(self) -> Callable[[Mapping, Mapping], dict[str, Tensor]] | None:
        """Loss by task from (logits by task, ``batch["class"]``); None without heads."""
        return None

    def build_class_scores(self) -> EpochClassScores | None:
        """What pools the class probabilities of the online validation; None without heads."""
        return None

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Optimizer and learning rate schedule of the segmentation network."""
        optimizer = torch.optim.SGD(
            self.segmentation_parameters(), self.initial_lr, momentum=0.99, weight_decay=self.weight_decay, nesterov=True
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def configure_head_optimizer(self) -> torch.optim.Optimizer | None:
        """Optimizer of the classification heads; None without any."""
        return None

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the classification heads; empty without any."""
        network = unwrapped_network(self.network)
        # A user's own network may have a module of the same name, which the segmentation's optimizer trains.
        return list(network.classification_heads.parameters()) if isinstance(network, JointNetwork) else []

    def segmentation_parameters(self) -> list[nn.Parameter]:
        """Parameters of the network without those of the heads."""
        of_heads = {id(parameter) for parameter in self.head_parameters()}
        return [parameter for parameter in unwrapped_network(self.network).parameters() if id(parameter) not in of_heads]

    def _do_i_compile(self) -> bool:
        """Whether network and Dice loss are compiled."""
        return not self._compiler_failed and reason_not_to_compile(self.device) is None

    def _build_loss(self) -> nn.Module:
        """The segmentation loss, called with (network output, target)."""
        if self.label_manager.has_regions:
            loss = DC_and_BCE_loss(
                {},
                {"batch_dice": self.configuration_manager.batch_dice, "do_bg": True, "smooth": self.dice_smooth, "ddp": self.is_ddp},
                weight_ce=self.voxel_loss_weight,
                use_ignore_label=self.label_manager.ignore_label is not None,
                dice_class=MemoryEfficientSoftDiceLoss,
            )
        else:
            loss = DC_and_CE_loss(
                {"batch_dice": self.configuration_manager.batch_dice, "smooth": self.dice_smooth, "do_bg": False, "ddp": self.is_ddp},
                {},
                weight_ce=self.voxel_loss_weight,
                ignore_label=self.label_manager.ignore_label,
                dice_class=MemoryEfficientSoftDiceLoss,
            )
        if self._do_i_compile():
            loss.dc = compiled(loss.dc)
        return self.with_deep_supervision(loss)

    def with_deep_supervision(self, loss: nn.Module) -> nn.Module:
        """The loss over all outputs of the decoder, each half as important as the next finer one, the coarsest left out."""
        if not self.enable_deep_supervision:
            return loss
        # Every parameter needs a gradient in a distributed training without compilation.
        zero_last = 1e-6 if self.is_ddp and not self._do_i_compile() else 0.0
        return DeepSupervisionWrapper(loss, deep_supervision_weights(len(self._get_deep_supervision_scales()), zero_last))

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Size of each decoder output relative to the patch, finest first; None without deep supervision."""
        if not self.enable_deep_supervision:
            return None
        strides = np.array(self.configuration_manager.pool_op_kernel_sizes)
        return [list(scale) for scale in 1 / np.cumprod(np.vstack(strides), axis=0)][:-1]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Whether the decoder returns all its outputs or the finest alone."""
        network = unwrapped_network(self.network)
        if not hasattr(network, "decoder") or not hasattr(network.decoder, "deep_supervision"):
            raise AttributeError(
                f"{type(network).__name__} has no attribute decoder.deep_supervision. "
                f"Override set_deep_supervision_enabled in {type(self).__name__}."
            )
        network.decoder.deep_supervision = enabled

    # ------------------------------------------------------------------ data

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[tuple[float, float], bool, Sequence[int], tuple[int, ...] | None]:
        """How far patches are rotated and along which axes they are mirrored.

        Also sets ``inference_allowed_mirroring_axes``, which the predictor reads from the checkpoint.

        Returns:
            Rotation range in radians, whether augmentation is 2D in each slice, patch size to cut before augmentation, mirror axes.
        """
        rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, mirror_axes = rotation_and_mirroring(
            self.configuration_manager.patch_size, self.flip_sensitive_patch_axes(), self.initial_patch_scale_range
        )
        self.print_to_log_file(f"do_dummy_2d_data_aug: {do_dummy_2d_data_aug}")
        self.inference_allowed_mirroring_axes = mirror_axes
        return rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, mirror_axes

    def flip_sensitive_patch_axes(self) -> tuple[int, ...]:
        """Axes of the patch whose mirroring would change a class."""
        file_axes = sorted({axis for task in self.classification_tasks.values() for axis in task.flip_sensitive_axes})
        return blocked_patch_axes(file_axes, self.plans_manager.transpose_forward, len(self.configuration_manager.patch_size))

    @staticmethod
    def get_training_transforms(
        patch_size: np.ndarray | tuple[int, ...],
        rotation_for_DA: Any,
        deep_supervision_scales: Sequence | None,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: list[bool] | None = None,
        is_cascaded: bool = False,
        foreground_labels: Sequence[int] | None = None,
        regions: Sequence | None = None,
        ignore_label: int | None = None,
    ) -> Any:
        """Augmentation of training patches, then conversion into what the loss needs."""
        from nnunetv2.training.data_augmentation.default_augmentation import training_transforms

        return training_transforms(
            patch_size,
            rotation_for_DA,
            deep_supervision_scales,
            mirror_axes,
            do_dummy_2d_data_aug,
            use_mask_for_norm=use_mask_for_norm,
            is_cascaded=is_cascaded,
            foreground_labels=foreground_labels,
            regions=regions,
            ignore_label=ignore_label,
        )

    @staticmethod
    def get_validation_transforms(
        deep_supervision_scales: Sequence | None,
        is_cascaded: bool = False,
        foreground_labels: Sequence[int] | None = None,
        regions: Sequence | None = None,
        ignore_label: int | None = None,
    ) -> Any:
        """Conversion of validation patches into what the loss needs."""
        from nnunetv2.training.data_augmentation.default_augmentation import validation_transforms

        return validation_transforms(
            deep_supervision_scales,
            is_cascaded=is_cascaded,
            foreground_labels=foreground_labels,
            regions=regions,
            ignore_label=ignore_label,
        )

    def stored_dataset_class(self) -> type[nnUNetBaseDataset]:
        """The class that reads the preprocessed cases, by their files."""
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        return infer_dataset_class(self.preprocessed_dataset_folder)

    def case_labels(self) -> CaseLabels:
        """Case-level labels of the preprocessed dataset, with no tasks where there is no classification."""
        return CaseLabels.load(self.preprocessed_dataset_folder_base, self.dataset_json)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Identifiers to train on and to validate on.

        ``splits_final.json`` beside the preprocessed data decides and is made if absent. Fold ``all`` trains and validates on every case.
        """
        if self.dataset_class is None:
            self.dataset_class = self.stored_dataset_class()
        identifiers = sorted(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        if self.fold == "all":
            return identifiers, list(identifiers)
        groups = load_case_groups(self.preprocessed_dataset_folder_base, self.dataset_json)
        splits = self._splits(identifiers, groups)
        if self.fold < len(splits):
            train_keys, val_keys = list(splits[self.fold]["train"]), list(splits[self.fold]["val"])
            self.print_to_log_file(f"Fold {self.fold} has {len(train_keys)} training and {len(val_keys)} validation cases.")
        else:
            train_keys, val_keys = split_beyond_file(identifiers, self.fold, groups)
            self.print_to_log_file(
                f"WARNING: fold {self.fold} is not among the {len(splits)} folds of splits_final.json. A random 80:20 split is used instead, with "
                f"{len(train_keys)} training and {len(val_keys)} validation cases."
            )
        self._check_split(train_keys, val_keys, identifiers)
        return train_keys, val_keys

    def _splits(self, identifiers: list[str], groups: dict[str, str] | None) -> list[dict[str, list[str]]]:
        """Content of ``splits_final.json``, which is written if absent and ``writes_splits``; what is made is the same every time."""
        file = join(self.preprocessed_dataset_folder_base, "splits_final.json")
        if os.path.isfile(file):
            splits = load_json(file)
            check_splits(splits, file)
            self.print_to_log_file(f"Using the {len(splits)} folds of {file}")
            return splits
        self.print_to_log_file("No splits_final.json yet: making five folds.")
        case_labels = self.case_labels()
        if case_labels.tasks or groups:
            splits, problems = generate_stratified_split(identifiers, case_labels, groups)
            for problem in problems:
                self.print_to_log_file(f"WARNING: {problem}")
        else:
            splits = generate_crossval_split(identifiers, seed=12345, n_splits=5)
        if self.local_rank == 0 and self.writes_splits:
            save_json(splits, file, sort_keys=False)
        return splits

    def _check_split(self, train_keys: list[str], val_keys: list[str], identifiers: list[str]) -> None:
        """Refuse cases that were not preprocessed, point out those that stand on both sides."""
        missing = sorted({*train_keys, *val_keys}.difference(identifiers))
        if missing:
            raise FileNotFoundError(
                f"The split names {len(missing)} cases that are not in {self.preprocessed_dataset_folder}: {', '.join(missing[:10])}"
                f"{' ...' if len(missing) > 10 else ''}. Preprocess them, or take them out of splits_final.json."
            )
        if not train_keys:
            raise ValueError(f"Fold {self.fold} has no training cases. Check splits_final.json.")
        both = sorted(set(train_keys).intersection(val_keys))
        if both:
            self.print_to_log_file(
                f"WARNING: {len(both)} cases stand in the training and in the validation set of fold {self.fold}, so its scores are too "
                f"good: {', '.join(both[:10])}"
            )

    def use_previous_stage_of(self, trainer_name: str) -> None:
        """Train on the first stage of a cascade that another trainer has predicted.

        Raises:
            ValueError: If this configuration has no previous stage.
        """
        if not self.is_cascaded:
            raise ValueError(f"{self.configuration_name} is no second stage of a cascade, so there is no previous stage of {trainer_name}.")
        self.folder_with_segs_from_previous_stage = self._previous_stage_folder(trainer_name)

    def _previous_stage_folder(self, trainer_name: str) -> str:
        """Where the trainings of the previous stage leave their predictions for this one."""
        plans, previous = self.plans_manager, self.configuration_manager.previous_stage_name
        model = get_output_folder(plans.dataset_name, trainer_name, plans.plans_name, previous)
        return join(model, "predicted_next_stage", self.configuration_name)

    def check_previous_stage(self, identifiers: Iterable[str]) -> None:
        """Raise FileNotFoundError if the previous stage has not predicted all of these cases."""
        folder = Path(self.folder_with_segs_from_previous_stage)
        predicted = {file.stem for file in folder.iterdir()} if folder.is_dir() else set()
        wanted = sorted(identifiers)
        missing = [identifier for identifier in wanted if identifier not in predicted]
        if not missing:
            return
        previous = self.configuration_manager.previous_stage_name
        others = sorted(path.parents[1].name.split("__")[0] for path in self._other_previous_stages(folder))
        raise FileNotFoundError(
            f"{self.configuration_name} is trained on predictions of {previous}, but {len(missing)} of {len(wanted)} cases have none in "
            f"{folder}, for example {missing[0]}. Each training of {previous} predicts the validation cases of its fold, so train all its "
            f"folds first: nnUNetv2_train {self.plans_manager.dataset_name} {previous} FOLD -tr {folder.parents[1].name.split('__')[0]} "
            f"-p {self.plans_manager.plans_name} (--val repeats the prediction of a finished one)."
            + (f" Predictions of other trainers: -prev_stage_tr {' or '.join(others)}." if others else "")
        )

    def _other_previous_stages(self, folder: Path) -> list[Path]:
        """Like ``folder``, of other trainers with the same plans."""
        model = folder.parents[1].name
        suffix = model[model.index("__") :]
        return [path for path in folder.parents[2].glob(f"*{suffix}/{folder.parent.name}/{folder.name}") if path != folder]

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """The preprocessed training and validation cases."""
        train_keys, val_keys = self.do_split()
        if self.is_cascaded:
            self.check_previous_stage({*train_keys, *val_keys})
        dataset_tr, dataset_val = (
            self.dataset_class(
                self.preprocessed_dataset_folder, keys, folder_with_segs_from_previous_stage=self.folder_with_segs_from_previous_stage
            )
            for keys in (train_keys, val_keys)
        )
        return dataset_tr, dataset_val

    def patches_and_transforms(self) -> tuple[Sequence[int], Any, Any]:
        """Voxels to read for a training patch, and the transforms of training and validation patches."""
        patch_size = self.configuration_manager.patch_size
        deep_supervision_scales = self._get_deep_supervision_scales()
        rotation_for_DA, dummy_2d, initial_patch_size, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        blocked = self.flip_sensitive_patch_axes()
        if blocked:  # again, since a subclass may have replaced them
            rotation_for_DA, mirror_axes = restrict_to_flip_insensitive(
                rotation_for_DA, mirror_axes, blocked, within_planes_across_axis_0=dummy_2d
            )
            _, self.inference_allowed_mirroring_axes = restrict_to_flip_insensitive(
                rotation_for_DA, self.inference_allowed_mirroring_axes, blocked
            )
        targets = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }
        train_transforms = self.get_training_transforms(
            patch_size,
            rotation_for_DA,
            deep_supervision_scales,
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm,
            **targets,
        )
        if blocked:
            from nnunetv2.training.data_augmentation.default_augmentation import restrict_axis_swaps

            restrict_axis_swaps(train_transforms, blocked)
        return initial_patch_size, train_transforms, self.get_validation_transforms(deep_supervision_scales, **targets)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Endless streams of training and validation batches."""
        if self.dataset_class is None:
            self.dataset_class = self.stored_dataset_class()
        self.settle_seed()
        initial_patch_size, train_transforms, val_transforms = self.patches_and_transforms()
        dataset_tr, dataset_val = self.get_tr_and_val_datasets()
        if self.class_scores is not None:
            self.class_scores.cases_total = len(dataset_val.identifiers)
        num_workers = get_allowed_n_proc_DA()
        train = self.augmented_somewhere(
            self.batch_stream(
                dataset_tr,
                initial_patch_size,
                train_transforms,
                self.num_iterations_per_epoch,
                num_workers,
                seed=self.seed,
                sampling_probabilities=self.sampling_probabilities(dataset_tr.identifiers),
            )
        )
        val = self.batch_stream(
            dataset_val,
            self.configuration_manager.patch_size,
            val_transforms,
            self.num_val_iterations_per_epoch,
            max(1, num_workers // 2) if num_workers else 0,
            seed=self.seed + SEED_OFFSET_OF_VALIDATION,
        )
        return train, val

    def augmented_somewhere(self, stream: Any) -> Any:
        """The training's batches with images augmented where ``nnUNet_augmentation_device`` says."""
        place = self.augmentation_place()
        if place == "cpu":
            return stream
        from nnunetv2.training.data_augmentation.adaptive_augmentation import AdaptiveStream
        from nnunetv2.training.data_augmentation.device_augmentation import VARIABLE
        from nnunetv2.training.dataloading.batch_stream import BatchStream
        from nnunetv2.training.dataloading.data_loader import reason_to_augment_here

        reason = reason_to_augment_here(stream.loader) if isinstance(stream, BatchStream) else "its loader is not nnU-Net's"
        if reason is not None:
            if place == "cuda":
                self.print_to_log_file(f"WARNING: {VARIABLE} is cuda, but the augmentation does not run on the GPU: {reason}.")
            return stream
        if place == "cuda":
            self.print_to_log_file(f"Images are augmented on {self.device}.")
            return stream.on_device(self.device)
        # With one iteration there are no steps between the batches of an epoch to compare with.
        return AdaptiveStream(stream, self.device, self.print_to_log_file) if stream.batches_per_epoch > 1 else stream

    def augmentation_place(self) -> str:
        """``cpu``, ``cuda`` or ``auto``; see :func:`device_augmentation.wanted_place`."""
        from nnunetv2.training.data_augmentation.device_augmentation import wanted_place

        return wanted_place(self.device)

    def sampling_probabilities(self, identifiers: Sequence[str]) -> np.ndarray | None:
        """How often each training case is drawn, summing to 1; None: all equally often."""
        return None

    def batch_stream(
        self,
        dataset: Any,
        patch_size: Sequence[int],
        transforms: Any,
        batches_per_epoch: int,
        num_workers: int,
        *,
        seed: int,
        loader_class: type[nnUNetDataLoader] | None = None,
        **loader_options: Any,
    ) -> BatchStream:
        """Batches of one dataset, each sample drawn from (seed, epoch, iteration, sample) alone, by default by a ``nnUNetDataLoader``."""
        from nnunetv2.training.dataloading.batch_stream import BatchStream
        from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

        options = {
            "oversample_foreground_percent": self.oversample_foreground_percent,
            "sampling_probabilities": None,
            "pad_sides": None,
            "probabilistic_oversampling": self.probabilistic_oversampling,
            "transforms": transforms,
            "seed": seed,
            **self.class_label_arguments(),
            **self.place_in_global_batch(),
            **loader_options,
        }
        new_loader = loader_class or nnUNetDataLoader
        loader = new_loader(dataset, self.batch_size, patch_size, self.configuration_manager.patch_size, self.label_manager, **options)
        return BatchStream(
            loader,
            batches_per_epoch,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
            start_epoch=self.current_epoch,
        )

    def place_in_global_batch(self) -> dict[str, int]:
        """What the loader needs to draw this process' part of a batch of all processes; nothing with one process."""
        if not self.is_ddp:
            return {}
        shares = of_all_processes(self.batch_size)
        return {"sample_offset": sum(shares[: self.local_rank]), "global_batch_size": sum(shares)}

    def class_label_arguments(self) -> dict[str, Any]:
        """What the loader needs to add the classes of each sample; nothing without heads."""
        return {}

    # ------------------------------------------------------------------ the run

    def run_training(self) -> None:
        """All epochs, from the current one on."""
        self.on_train_start()
        if self._pending_rng_state is not None:
            # Last, so that a continued training draws what the interrupted one would have drawn.
            restore_rng_state(self._pending_rng_state, self.device if self.is_ddp else None)
            self._pending_rng_state = None
        for _ in range(self.current_epoch, self.num_epochs):
            self.on_epoch_start()
            self.on_train_epoch_start()
            train_outputs = [self.run_step(self.train_step, next(self.dataloader_train)) for _ in range(self.num_iterations_per_epoch)]
            self.on_train_epoch_end(train_outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                val_outputs = [
                    self.run_step(self.validation_step, next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)
                ]
                self.on_validation_epoch_end(val_outputs)
            self.on_epoch_end()
        self.on_train_end()
        wait_for_all_processes()  # what follows reads the checkpoints that the first one writes

    def run_step(self, step: Callable[[Any], dict], batch: Any) -> dict:
        """One step; a failure of the compiler is reported, and the training goes on without it."""
        try:
            return step(batch)
        except Exception as error:
            if not is_compiled(self._compiled_part()) or not is_compiler_error(error):
                raise
            self.print_to_log_file(f"torch.compile failed, the training goes on without it. Reason: {type(error).__name__}: {error}")
        # Outside the handler, which keeps the tensors of the failed attempt alive.
        self._compiler_failed = True
        if self.is_ddp:
            self.network.module = unwrapped_network(self.network)  # the other processes need not notice
        else:
            self.network = unwrapped_network(self.network)
        self.loss = self._build_loss()
        return step(batch)

    def _compiled_part(self) -> nn.Module:
        """The network without the shell of a distributed training."""
        return self.network.module if isinstance(self.network, nn.parallel.DistributedDataParallel) else self.network

    def on_train_start(self) -> None:
        """Prepare what the epochs need, and write down what is trained."""
        if not self.was_initialized:
            self.initialize()
        if self.is_ddp:
            self._check_processes_agree()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        for stream in (self.dataloader_train, self.dataloader_val):
            if hasattr(stream, "set_epoch"):
                stream.set_epoch(self.current_epoch)
        if self.enable_deep_supervision:
            self.set_deep_supervision_enabled(True)
        self.print_plans()
        empty_cache(self.device)
        if self.local_rank == 0:
            if hasattr(self.dataset_class, "unpack_dataset"):
                self.dataset_class.unpack_dataset(
                    self.preprocessed_dataset_folder, overwrite_existing=False, num_processes=max(1, round(get_allowed_n_proc_DA() // 2))
                )
            self.write_model_files()
            self.plot_network_architecture()
            self._save_debug_information()
        reason = reason_not_to_compile(self.device)
        if self.device.type == "cuda" and reason is not None:
            self.print_to_log_file(f"torch.compile is off: {reason}.")
        wait_for_all_processes()  # for what the first one unpacked
        self._last_save_time = time.monotonic()

    def _check_processes_agree(self) -> None:
        """Raise RuntimeError if processes would train different things: machines with folders of their own."""
        mine = {"epoch": self.current_epoch, "cases": self.do_split(), **{name: getattr(self, name) for name in RUN_OPTIONS}}
        for name, value in of_first_process(mine).items():
            if value != mine[name]:
                shown = "" if name == "cases" else f": {value} and {mine[name]}"
                raise RuntimeError(
                    f"Process {self.local_rank} on {socket.gethostname()} and the first process differ in {name}{shown}. All machines need the "
                    f"same {self.preprocessed_dataset_folder_base} and one shared {self.output_folder}."
                )

    def write_model_files(self) -> None:
        """What prediction needs beside the checkpoints of the folds: plans and ``dataset.json``."""
        if self.local_rank != 0:
            return
        os.makedirs(self.output_folder_base, exist_ok=True)
        save_json(self.plans_manager.plans, join(self.output_folder_base, "plans.json"), sort_keys=False)
        save_json(self.dataset_json, join(self.output_folder_base, "dataset.json"), sort_keys=False)
        fingerprint = join(self.preprocessed_dataset_folder_base, "dataset_fingerprint.json")
        if os.path.isfile(fingerprint):
            copy_file(fingerprint, join(self.output_folder_base, "dataset_fingerprint.json"))

    def on_train_end(self) -> None:
        """Write the final checkpoint and stop the workers."""
        self.save_finished(join(self.output_folder, "checkpoint_final.pth"))
        if self.local_rank == 0 and not self.disable_checkpointing:
            Path(self.output_folder, "checkpoint_latest.pth").unlink(missing_ok=True)
        self.stop_dataloaders()
        empty_cache(self.device)
        self.print_to_log_file("The last epoch is done.")

    def save_finished(self, filename: str) -> None:
        """Write the checkpoint of a training that has no epoch left."""
        # The checkpoint names the epoch to go on with, one more than the current epoch.
        self.current_epoch -= 1
        self.save_checkpoint(filename)
        self.current_epoch += 1

    def stop_dataloaders(self) -> None:
        """End the worker processes."""
        for stream in (self.dataloader_train, self.dataloader_val):
            for stop in ("close", "_finish"):  # BatchStream; batchgenerators' augmenters
                if callable(getattr(stream, stop, None)):
                    getattr(stream, stop)()
                    break
        self.dataloader_train = self.dataloader_val = None

    def on_epoch_start(self) -> None:
        """Note the time."""
        self.logger.log("epoch_start_timestamps", time.time(), self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Set the learning rate of this epoch."""
        self.network.train()
        self.lr_scheduler.step(self.current_epoch)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self.print_to_log_file(f"Current learning rate: {np.round(learning_rate, decimals=5)}")
        self.logger.log("lrs", learning_rate, self.current_epoch)

    def autocast(self) -> AbstractContextManager:
        """float16 on CUDA, nothing elsewhere."""
        return torch.autocast("cuda", enabled=True) if self.device.type == "cuda" else nullcontext()

    def train_step(self, batch: dict) -> dict:
        """One step of the optimisers.

        Args:
            batch: ``data``, ``target`` (a list under deep supervision), ``keys``, and ``class`` where there are heads.

        Returns:
            ``loss`` and its parts, as numpy scalars.
        """
        batch = self.batch_on_device(batch)
        self.zero_grad()
        with self.autocast():
            losses = self.compute_losses(as_joint_output(self.network(batch["data"])), batch)
        values = transfer_of_losses(losses)  # asked for now, so that reading them later does not wait for the backward pass
        if self.grad_scaler is None and not self._is_finite_everywhere(losses["loss"]):
            self.print_to_log_file(f"WARNING: the loss is {losses['loss'].item()}, this step is left out. Cases: {list(batch['keys'])}")
        else:
            self.optimizer_step(losses["loss"])
        return values()

    def _is_finite_everywhere(self, loss: Tensor) -> bool:
        """Whether the loss is finite in every process; they take a step together or not at all."""
        is_finite = torch.isfinite(loss.detach()).float()
        if self.is_ddp:
            torch.distributed.all_reduce(is_finite, op=torch.distributed.ReduceOp.MIN)
        return bool(is_finite)

    def batch_on_device(self, batch: Mapping) -> Batch:
        """The batch with its tensors on the device; a plain dict of a user's loader simply has no classes."""
        return as_batch(batch).to(self.device, non_blocking=True)

    def compute_losses(self, output: JointOutput, batch: Mapping) -> dict[str, Tensor]:
        """The terms of the loss.

        Returns:
            ``segmentation``, ``classification_<task>`` for every head, and their weighted sum ``loss``.
        """
        losses = {"segmentation": self.loss(output.segmentation, batch["target"])}
        losses["loss"] = losses["segmentation"]
        for task, loss in self.classification_losses(output, batch).items():
            losses[f"classification_{task}"] = loss
            losses["loss"] = losses["loss"] + self.classification_loss_weight() * self.classification_tasks[task].weight * loss
        return losses

    def classification_losses(self, output: JointOutput, batch: Mapping) -> dict[str, Tensor]:
        """Loss by task, each averaged over the samples whose label is known."""
        if not output.classification or self.classification_loss is None:
            return {}
        return self.classification_loss(output.classification, batch["class"])

    def classification_loss_weight(self) -> float:
        """The factor λ of the classification losses."""
        return 0.0

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.head_optimizer is not None:
            self.head_optimizer.zero_grad(set_to_none=True)

    def optimizer_step(self, loss: Tensor) -> None:
        """Backward pass, clipping and update."""
        scaler = self.grad_scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        self.head_optimizer_step()
        if scaler is None:
            torch.nn.utils.clip_grad_norm_(self.segmentation_parameters(), GRADIENT_NORM)
            self.optimizer.step()
            return
        scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.segmentation_parameters(), GRADIENT_NORM)
        scaler.step(self.optimizer)
        scaler.update()

    def head_optimizer_step(self) -> None:
        """Update the heads from the gradients that the backward pass left, and clear these. Nothing without heads."""

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the mean losses of the epoch."""
        outputs = collate_outputs(outputs_of_all_processes(train_outputs))
        self.logger.log("train_losses", np.mean(outputs["loss"]), self.current_epoch)
        self.log_loss_parts("train", outputs)

    def log_loss_parts(self, phase: str, outputs: Mapping[str, list]) -> None:
        """Log the losses of segmentation and classes apart, where there are classes."""
        for task in self.classification_tasks:
            if f"loss_classification_{task}" in outputs:
                loss = float(np.mean(outputs[f"loss_classification_{task}"]))
                self.logger.log(f"classification/{task}/{phase}_loss", loss, self.current_epoch)
        if "loss_segmentation" in outputs:
            self.logger.log(f"{phase}_loss_segmentation", float(np.mean(outputs["loss_segmentation"])), self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """Stop the training behaviour of the network."""
        self.network.eval()

    def validation_step(self, batch: dict) -> dict:
        """Losses and counts of one validation batch.

        Returns:
            ``loss``, ``tp_hard``, ``fp_hard``, ``fn_hard`` (one number per class or region), and with heads the parts of the loss and
            ``class_records``, a list with one entry for each sample and task.
        """
        batch = self.batch_on_device(batch)
        with self.autocast():
            output = as_joint_output(self.network(batch["data"]))
            losses = self.compute_losses(output, batch)
        logits = output.segmentation[0] if isinstance(output.segmentation, (list, tuple)) else output.segmentation
        target = batch["target"][0] if isinstance(batch["target"], (list, tuple)) else batch["target"]
        tp_hard, fp_hard, fn_hard = self.hard_counts(logits, target)
        result = {**transfer_of_losses(losses)(), "tp_hard": tp_hard, "fp_hard": fp_hard, "fn_hard": fn_hard}
        if output.classification and self.class_scores is not None:
            result["class_records"] = self.class_scores.records(batch["keys"], output.classification, logits)
        return result

    def hard_counts(self, logits: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True positives, false positives and false negatives by foreground class or region, over batch and space."""
        axes = [0, *range(2, logits.ndim)]
        has_regions, ignore_label = self.label_manager.has_regions, self.label_manager.ignore_label
        if has_regions:
            predicted = (torch.sigmoid(logits.float()) > 0.5).long()
        else:
            predicted = torch.zeros(logits.shape, device=logits.device, dtype=torch.float32)
            predicted.scatter_(1, logits.argmax(1)[:, None], 1)
        mask = None
        if ignore_label is not None and has_regions:
            mask = (1 - target[:, -1:].float()) > 0.5
            target = target[:, :-1]
        elif ignore_label is not None:
            mask = target != ignore_label
            target = torch.where(mask, target, torch.zeros_like(target))
        mask = None if mask is None else mask.float()
        tp, fp, fn, _ = get_tp_fp_fn_tn(predicted, target, axes=axes, mask=mask)
        first = 0 if has_regions else 1  # the background counts in none of the scores
        return tuple(counts.detach().cpu().numpy()[first:] for counts in (tp, fp, fn))

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log pseudo Dice, losses and the scores of the classes, pooled over the epoch."""
        outputs = collate_outputs(outputs_of_all_processes(val_outputs))
        tp, fp, fn = (np.sum(outputs[name], axis=0) for name in ("tp_hard", "fp_hard", "fn_hard"))
        with np.errstate(divide="ignore", invalid="ignore"):
            dice = [float(value) for value in 2 * tp / (2 * tp + fp + fn)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=RuntimeWarning)  # nothing of any class in an epoch: NaN
            mean_dice = float(np.nanmean(dice)) if dice else float("nan")
        self.logger.log("mean_fg_dice", mean_dice, self.current_epoch)
        self.logger.log("dice_per_class_or_region", dice, self.current_epoch)
        self.logger.log("val_losses", np.mean(outputs["loss"]), self.current_epoch)
        self.log_loss_parts("val", outputs)
        if "class_records" in outputs:
            self.log_class_scores(outputs["class_records"])

    def log_class_scores(self, records: list) -> EpochScores:
        """Score the classes of all validation cases seen in this epoch."""
        scores = self.class_scores.scores(records)
        for task, values in scores.by_task.items():
            for name, value in values.items():
                self.logger.log(f"classification/{task}/{name}", value, self.current_epoch)
        self.logger.log("classification/case_score", scores.case_score, self.current_epoch)  # logs its moving average, too
        self.ema_case_score = self.logger.get_value("classification/ema_case_score", self.current_epoch)
        for line in scores.lines():
            self.print_to_log_file(line)
        return scores

    def on_epoch_end(self) -> None:
        """Report the epoch and write the checkpoints that are due."""
        self.logger.log("epoch_end_timestamps", time.time(), self.current_epoch)
        epoch = self.current_epoch
        self.print_to_log_file("train_loss", np.round(self.logger.get_value("train_losses", epoch), decimals=4))
        self.print_to_log_file("val_loss", np.round(self.logger.get_value("val_losses", epoch), decimals=4))
        self.print_to_log_file(
            "Pseudo dice", [np.round(value, decimals=4).item() for value in self.logger.get_value("dice_per_class_or_region", epoch)]
        )
        duration = self.logger.get_value("epoch_end_timestamps", epoch) - self.logger.get_value("epoch_start_timestamps", epoch)
        self.print_to_log_file(f"Epoch time: {duration:.2f} s")
        if self.is_ddp:
            self._random_states_of_ranks = of_all_processes(self.random_states())
        for filename in self.checkpoints_due(duration):
            self.save_checkpoint(join(self.output_folder, filename))
            if filename == "checkpoint_latest.pth":
                self._last_save_time = time.monotonic()
        if self.local_rank == 0:
            self.logger.plot_progress_png(self.output_folder)
        self.current_epoch += 1

    def checkpoints_due(self, epoch_seconds: float) -> list[str]:
        """Names of the checkpoints to write after this epoch; notes the new bests first, so that all of them say the same."""
        names = []
        ema_dice = self.logger.get_value("ema_fg_dice", self.current_epoch)
        if is_better(ema_dice, self._best_ema):
            self._best_ema = ema_dice
            self.print_to_log_file(f"New best EMA of the patch Dice: {np.round(self._best_ema, decimals=4)}")
            names.append("checkpoint_best.pth")
        if self.ema_case_score is not None and np.isfinite(self.ema_case_score):
            if is_better(self.ema_case_score, self._best_ema_case_score):
                self._best_ema_case_score = self.ema_case_score
                self.print_to_log_file(f"New best EMA case score: {np.round(self._best_ema_case_score, decimals=4)}")
                names.append("checkpoint_best_classification.pth")
            joint = (ema_dice + self.ema_case_score) / 2
            if is_better(joint, self._best_joint):
                self._best_joint = joint
                names.append("checkpoint_best_joint.pth")
        is_last = self.current_epoch == self.num_epochs - 1
        # The next occasion is one epoch away.
        seconds_at_next_occasion = time.monotonic() - self._last_save_time + epoch_seconds
        if not is_last and ((self.current_epoch + 1) % self.save_every == 0 or seconds_at_next_occasion > self.save_every_seconds):
            names.append("checkpoint_latest.pth")
        return names

    # ------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write everything that the training needs to go on exactly, and that prediction needs."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        checkpoint = {
            "network_weights": unwrapped_network(self.network).state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "classification": self.classification_entry(),
            "head_optimizer_state": self.head_optimizer.state_dict() if self.head_optimizer is not None else None,
            "refitted_heads": self.refitted_heads_entry(),
            "training_state": self.training_state(),
        }
        save_checkpoint_file(checkpoint, filename)

    def training_state(self) -> dict[str, Any]:
        """What a training needs to go on exactly, beyond the entries of nnU-Net's own checkpoints."""
        state = {
            "seed": self.seed,
            "rng_state": rng_state(self.device if self.is_ddp else None),
            "run_options": self.run_options,
            "ema_case_score": self.ema_case_score,
            "best_ema_case_score": self._best_ema_case_score,
            "best_joint": self._best_joint,
        }
        if self._random_states_of_ranks:
            state["random_states_of_ranks"] = self._random_states_of_ranks
        return state

    def random_states(self) -> dict[str, Any]:
        """The entries of :meth:`training_state` that every process has of its own."""
        return {"rng_state": rng_state(self.device)}

    def _own_training_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a checkpoint with the random states of this process, which draws new ones if the checkpoint has none for it."""
        of_ranks = state.get("random_states_of_ranks") or []
        if self.is_ddp and len(of_ranks) == number_of_processes():
            return {**state, **of_ranks[self.local_rank]}
        if self.local_rank > 0:
            self.draw_independently(self.current_epoch)
            return {**state, **self.random_states()}
        return dict(state)

    def restore_training_state(self, state: Mapping[str, Any]) -> None:
        """The reverse of :meth:`training_state`; random states are set when the epochs begin."""
        self.seed = state["seed"]
        self._seeded = True
        self._pending_rng_state = state["rng_state"]
        self.ema_case_score = state["ema_case_score"]
        self._best_ema_case_score = state["best_ema_case_score"]
        self._best_joint = state["best_joint"]

    def use_run_options(self, options: Mapping[str, int]) -> None:
        """Length of the training as asked for; must come before :meth:`initialize`, which plans the learning rate by it."""
        for name, value in options.items():
            if name not in RUN_OPTIONS:
                raise ValueError(f"Unknown option {name!r}, expected one of {RUN_OPTIONS}.")
            setattr(self, name, value)
        self.run_options = {**self.run_options, **options}

    def load_checkpoint(self, filename_or_checkpoint: dict | str | Path) -> None:
        """Go on where a checkpoint was written.

        Args:
            filename_or_checkpoint: A file, or its content.
        """
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, Mapping):
            # On the CPU: what is restored goes to the device of its owner, and a GPU need not hold everything twice.
            checkpoint = load_checkpoint_file(filename_or_checkpoint, map_location="cpu")
        state = checkpoint.get("training_state") or {}
        if not self.was_initialized:
            # Options of this run win over those of the run that is continued.
            self.use_run_options({**state.get("run_options", {}), **self.run_options})
            if self.seed is None:
                self.seed = state.get("seed")
            self.initialize()
        weights = checkpoint["network_weights"]
        network = unwrapped_network(self.network)
        own = network.state_dict().keys()
        # Trainers of other people may have stored the shell of a distributed training with it.
        weights = {key[7:] if key not in own and key.startswith("module.") else key: value for key, value in weights.items()}
        network.load_state_dict(weights)
        self.my_init_kwargs = checkpoint.get("init_args", self.my_init_kwargs)
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        if checkpoint.get("inference_allowed_mirroring_axes") is not None:
            self.inference_allowed_mirroring_axes = tuple(checkpoint["inference_allowed_mirroring_axes"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.head_optimizer is not None and checkpoint.get("head_optimizer_state") is not None:
            self.head_optimizer.load_state_dict(checkpoint["head_optimizer_state"])
        if self.grad_scaler is not None and checkpoint.get("grad_scaler_state") is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        if state:
            self.restore_training_state(self._own_training_state(state))

    # ------------------------------------------------------------------ validation of whole cases

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the validation cases by the path of the predictor and score them, into the folder ``validation_name``."""
        from nnunetv2.training.nnUNetTrainer.case_validation import validate_cases

        validate_cases(self, save_probabilities)

    # ------------------------------------------------------------------ reports

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write the arguments, joined by blanks, to the log file and the console."""
        if self.local_rank != 0:
            return
        if not self._log_has_begun:
            self._log_has_begun = True
            os.makedirs(self.output_folder, exist_ok=True)
            self.print_to_log_file(f"\n{'#' * 70}\n{CITATION}{'#' * 70}\n", add_timestamp=False)
        now = time.time()
        parts = (f"{datetime.fromtimestamp(now)}:", *args) if add_timestamp else args
        line = "".join(f"{part} " for part in parts)
        for attempt in range(5):
            try:
                with open(self.log_file, "a+", encoding="utf-8") as file:
                    file.write(line + "\n")
                break
            except OSError as error:  # network file systems fail now and then
                print(f"{datetime.fromtimestamp(now)}: failed to write to {self.log_file}: {error}", flush=True)
                if error.errno in NO_SPACE_ERRORS:
                    break
                if attempt < 4:
                    time.sleep(0.5)
        if also_print_to_console:
            print(line, flush=True)

    def print_plans(self) -> None:
        """Write configuration and plans to the log."""
        plans = copy.deepcopy(self.plans_manager.plans)
        plans.pop("configurations", None)
        self.print_to_log_file(
            f"\nConfiguration {self.configuration_name}:\n",
            json.dumps(self.configuration_manager.configuration, default=str),
            "\n",
            add_timestamp=False,
        )
        self.print_to_log_file("Plans:\n", json.dumps(plans, default=str), "\n", add_timestamp=False)

    def plot_network_architecture(self) -> None:
        """A PDF of the network, where the package hiddenlayer is installed."""
        if self._do_i_compile():
            self.print_to_log_file("The network architecture is not drawn: the network is compiled")
            return
        try:
            import hiddenlayer

            example = torch.rand((1, self.num_input_channels, *self.configuration_manager.patch_size), device=self.device)
            graph = hiddenlayer.build_graph(unwrapped_network(self.network), example, transforms=None)
            graph.save(join(self.output_folder, "network_architecture.pdf"))
        except Exception as error:  # a picture is never worth a training
            self.print_to_log_file(f"The network architecture is not drawn: {error}")
        finally:
            empty_cache(self.device)

    def _save_debug_information(self) -> None:
        """``debug.json``: the values of this trainer and of the machine, as text."""
        if self.local_rank != 0:
            return
        values = {
            name: str(value)
            for name, value in sorted(vars(self).items())
            if not name.startswith("__") and (not callable(value) or name == "loss")
        }
        for name in ("dataloader_train", "dataloader_val"):
            stream = getattr(self, name)
            loader = getattr(stream, "loader", getattr(stream, "generator", None))
            values[f"{name}.generator"] = str(loader)
            values[f"{name}.generator.transforms"] = str(getattr(loader, "transforms", None))
            values[f"{name}.num_processes"] = str(getattr(stream, "num_workers", getattr(stream, "num_processes", None)))
        values["network"] = type(unwrapped_network(self.network)).__name__
        values["optimizer"] = str(self.optimizer)
        values["lr_scheduler"] = str(self.lr_scheduler)
        values["hostname"] = socket.gethostname()
        values["torch_version"] = torch.__version__
        values["nnunetv2_version"] = package_version()
        values["device"] = str(self.device)
        if self.device.type == "cuda":
            values["gpu_name"] = torch.cuda.get_device_name(self.device)
            values["cudnn_version"] = str(torch.backends.cudnn.version())
        save_json(values, join(self.output_folder, "debug.json"), sort_keys=True)


def transfer_of_losses(losses: Mapping[str, Tensor]) -> Callable[[], dict[str, np.ndarray]]:
    """Begin to copy losses to the host in one transfer; a GPU goes on meanwhile.

    Returns:
        A function that waits for the copy, and for nothing that the device was given afterwards. It returns numpy scalars: ``loss`` and,
        where there are several, its parts ``loss_...``.
    """
    names = list(losses) if len(losses) > 2 else ["loss"]
    values = torch.stack([losses[name].detach().float() for name in names])
    copied = None
    if values.device.type == "cuda":
        values, on_device = torch.empty(values.shape, dtype=values.dtype, pin_memory=True), values
        values.copy_(on_device, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(on_device.device))

    def read() -> dict[str, np.ndarray]:
        if copied is not None:
            copied.synchronize()
        numbers = values.cpu().numpy()
        return {name if name == "loss" else f"loss_{name}": np.asarray(number) for name, number in zip(names, numbers, strict=True)}

    return read


def is_better(value: float, best: float | None) -> bool:
    """Whether a score beats the best so far; the first one does, and every one beats an undefined one."""
    return best is None or not np.isfinite(best) or bool(value > best)

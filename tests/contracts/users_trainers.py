"""Trainers as users of nnU-Net write them, each from nnU-Net's interface alone. The test copies this file to a folder of ``nnUNet_extTrainer``."""

from typing import List, Tuple, Union

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from torch import autocast, nn

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, get_tp_fp_fn_tn
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.helpers import dummy_context, softmax_helper_dim1
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


class OwnSteps(nnUNetTrainer):
    """Steps, loss, optimiser and logged values."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 1e-3
        self.weight_decay = 1e-4
        self.oversample_foreground_percent = 0.5

    def _build_loss(self):
        loss = DC_and_CE_loss(
            {"batch_dice": self.configuration_manager.batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": self.is_ddp},
            {},
            weight_ce=2,
            weight_dice=1,
            ignore_label=self.label_manager.ignore_label,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
        weights = np.array([1 / (2**i) for i in range(len(self._get_deep_supervision_scales()))])
        weights[-1] = 0
        return DeepSupervisionWrapper(loss, weights / weights.sum())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def train_step(self, batch: dict) -> dict:
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            target = [i.to(self.device, non_blocking=True) for i in target]
        else:
            target = target.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy(), "largest": output[0].detach().max().cpu().numpy()}

    def on_train_epoch_end(self, train_outputs: List[dict]):
        super().on_train_epoch_end(train_outputs)
        outputs = collate_outputs(train_outputs)
        self.logger.log("largest_logit", float(np.max(outputs["largest"])), self.current_epoch)

    def validation_step(self, batch: dict) -> dict:
        data = batch["data"].to(self.device)
        target = [i.to(self.device) for i in batch["target"]]
        output = self.network(data)
        loss = self.loss(output, target)
        probabilities = softmax_helper_dim1(output[0])
        onehot = torch.zeros_like(probabilities).scatter_(1, probabilities.argmax(1)[:, None], 1)
        tp, fp, fn, _ = get_tp_fp_fn_tn(onehot, target[0], axes=[0, *range(2, output[0].ndim)])
        tp, fp, fn = (i.detach().cpu().numpy()[1:] for i in (tp, fp, fn))
        return {"loss": loss.detach().cpu().numpy(), "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}


class PlainNetwork(nn.Module):
    """Without encoder, decoder and deep supervision."""

    def __init__(self, channels: int, classes: int, dimensions: int):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        self.layers = nn.Sequential(conv(channels, 4, 3, padding=1), nn.LeakyReLU(), conv(4, classes, 1))

    def forward(self, x):
        return self.layers(x)


class OwnNetwork(nnUNetTrainer):
    """A network that knows nothing of nnU-Net, in the signature of 2.7 and later."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return PlainNetwork(num_input_channels, num_output_channels, len(configuration_manager.patch_size))

    def set_deep_supervision_enabled(self, enabled: bool):
        pass


class OwnNetworkOf24(nnUNetTrainer):
    """The signature of 2.4 to 2.6."""

    @staticmethod
    def build_network_architecture(
        architecture_class_name: str,
        arch_init_kwargs: dict,
        arch_init_kwargs_req_import: Union[List[str], Tuple[str, ...]],
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        kwargs = {**arch_init_kwargs, "n_conv_per_stage_decoder": [2] * (arch_init_kwargs["n_stages"] - 1)}
        return get_network_from_plans(
            architecture_class_name,
            kwargs,
            arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            allow_init=True,
            deep_supervision=enable_deep_supervision,
        )


class OwnNetworkOf20(OwnNetwork):
    """The signature of 2.0 to 2.3."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        dataset_json,
        configuration_manager: ConfigurationManager,
        num_input_channels,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        label_manager = plans_manager.get_label_manager(dataset_json)
        return PlainNetwork(num_input_channels, label_manager.num_segmentation_heads, len(configuration_manager.patch_size))


class OwnAugmentation(nnUNetTrainer):
    """Other transforms of training and validation patches, without mirroring at prediction."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = (0,)
        return rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, (0,)

    @staticmethod
    def get_training_transforms(
        patch_size,
        rotation_for_DA,
        deep_supervision_scales,
        mirror_axes,
        do_dummy_2d_data_aug,
        use_mask_for_norm=None,
        is_cascaded=False,
        foreground_labels=None,
        regions=None,
        ignore_label=None,
    ):
        transforms = [
            SpatialTransform(
                patch_size,
                patch_center_dist_from_border=0,
                random_crop=False,
                p_elastic_deform=0.5,
                p_rotation=0.5,
                rotation=rotation_for_DA,
                p_scaling=0.5,
                scaling=(0.8, 1.2),
            ),
            RandomTransform(
                GammaTransform((0.7, 1.5), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1), 0.5
            ),
            MirrorTransform(allowed_axes=mirror_axes),
            RemoveLabelTansform(-1, 0),
        ]
        if deep_supervision_scales is not None:
            transforms.append(DownsampleSegForDSTransform(ds_scales=deep_supervision_scales))
        return ComposeTransforms(transforms)

    @staticmethod
    def get_validation_transforms(deep_supervision_scales, is_cascaded=False, foreground_labels=None, regions=None, ignore_label=None):
        transforms = [RemoveLabelTansform(-1, 0)]
        if deep_supervision_scales is not None:
            transforms.append(DownsampleSegForDSTransform(ds_scales=deep_supervision_scales))
        return ComposeTransforms(transforms)


class CountingLoader(nnUNetDataLoader):
    """A loader with a rule of its own about foreground."""

    def get_do_oversample(self, sample_idx: int) -> bool:
        return True


class OwnDataloaders(nnUNetTrainer):
    """Loaders put together by hand, and a split that is not in a file."""

    def do_split(self):
        identifiers = sorted(infer_dataset_class(self.preprocessed_dataset_folder).get_identifiers(self.preprocessed_dataset_folder))
        return identifiers[2:], identifiers[:2]

    def get_dataloaders(self):
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        patch_size = self.configuration_manager.patch_size
        scales = self._get_deep_supervision_scales()
        rotation, dummy_2d, initial_patch_size, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        common = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }
        tr_transforms = self.get_training_transforms(
            patch_size, rotation, scales, mirror_axes, dummy_2d, use_mask_for_norm=self.configuration_manager.use_mask_for_norm, **common
        )
        val_transforms = self.get_validation_transforms(scales, **common)
        dataset_tr, dataset_val = self.get_tr_and_val_datasets()
        dl_tr = CountingLoader(
            dataset_tr, self.batch_size, initial_patch_size, patch_size, self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent, sampling_probabilities=None, pad_sides=None,
            transforms=tr_transforms, probabilistic_oversampling=self.probabilistic_oversampling,
        )  # fmt: skip
        dl_val = nnUNetDataLoader(
            dataset_val, self.batch_size, patch_size, patch_size, self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent, transforms=val_transforms,
        )  # fmt: skip
        if get_allowed_n_proc_DA() == 0:
            train, val = SingleThreadedAugmenter(dl_tr, None), SingleThreadedAugmenter(dl_val, None)
        else:
            train, val = (
                NonDetMultiThreadedAugmenter(
                    data_loader=loader, transform=None, num_processes=1, num_cached=2, seeds=None,
                    pin_memory=self.device.type == "cuda", wait_time=0.002,
                )
                for loader in (dl_tr, dl_val)
            )  # fmt: skip
        _ = next(train)
        _ = next(val)
        return train, val

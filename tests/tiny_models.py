"""Model folders with a small network of random weights, and images for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

from nnunetv2.inference.morphometry import morphometry_names
from nnunetv2.network_architecture.classification_heads import (
    CaseHead,
    HeadDescription,
    build_heads,
    classification_entry,
    default_stages,
    encoder_channels,
)
from nnunetv2.network_architecture.joint_network import with_classification_heads
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.training.case_head_fit import grow_trees
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask, classification_tasks
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

LABELS = {"background": 0, "organ": 1, "lesion": 2}
CLASSIFICATION = {
    "subtype": {"classes": ["a", "b", "c"], "evidence": ["lesion"]},
    "findings": {"type": "multilabel", "classes": ["x", "y"]},
    "grade": {"type": "ordinal", "classes": ["G1", "G2", "G3"]},
}


def plans(dimensions: int = 3, spacing: tuple[float, ...] = (1.0, 1.0, 1.0), patch_size: int = 16) -> dict[str, Any]:
    """Plans with one configuration, ``3d_fullres`` or ``2d``."""
    per_stage = [[1] * dimensions, [2] * dimensions]
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [patch_size] * dimensions,
        "median_image_size_in_voxels": [20.0] * dimensions,
        "spacing": list(spacing)[-dimensions:],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                "kernel_sizes": [[3] * dimensions] * 2,
                "strides": per_stage,
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset999_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [20, 20, 20],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d" if dimensions == 2 else "3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def dataset_json(labels: Mapping[str, Any] = LABELS, **entries: Any) -> dict[str, Any]:
    return {"channel_names": {"0": "MR"}, "labels": dict(labels), "numTraining": 10, "file_ending": ".nii.gz", **entries}


def random_network(
    plans_content: dict,
    dataset: dict,
    *,
    seed: int,
    classification: bool | Mapping[str, Any] = False,
    pooling: str = "mean_max",
    level: str = "patch",
    morphometry: bool = False,
    trees: int = 0,
) -> nn.Module:
    """A network with random weights, whose classes differ from place to place.

    Args:
        plans_content: With one configuration.
        dataset: Channels and labels.
        seed: Of the weights.
        classification: Heads for these tasks, as in ``dataset.json``; True: those of ``CLASSIFICATION``.
        pooling: Of the heads.
        level: ``patch``, or ``case`` for heads of whole cases.
        morphometry: Whether heads of whole cases also look at the sizes and shapes of the structures.
        trees: Decision trees on these, which are larger with every seed.
    """
    torch.manual_seed(seed)
    configuration = PlansManager(plans_content).get_configuration(next(iter(plans_content["configurations"])))
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        len(dataset["channel_names"]),
        LabelManager(dataset["labels"], dataset.get("regions_class_order")).num_segmentation_heads,
        deep_supervision=False,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    if not classification:
        return network
    tasks = classification_tasks(dataset | {"classification": CLASSIFICATION if classification is True else classification})
    if level == "patch":
        heads = build_heads(tasks, encoder_channels(network), pooling=pooling, labels=dataset["labels"], seed=seed)
    else:
        heads = _random_case_heads(tasks, encoder_channels(network), pooling, dataset, morphometry)
        if trees:
            _add_random_trees(heads, trees, cases=30 * (seed + 1))
    return with_classification_heads(network, heads)


def _random_case_heads(
    tasks: Mapping[str, ClassificationTask], channels: Sequence[int], pooling: str, dataset: dict, morphometry: bool
) -> dict[str, CaseHead]:
    """Heads of whole cases with random weights, means and deviations."""
    structures = {name: (value,) for name, value in dataset["labels"].items() if value} if morphometry else {}
    heads = {}
    for name, task in tasks.items():
        description = HeadDescription(
            task=task,
            pooling=pooling,
            stages=default_stages(len(channels)),
            level="case",
            evidence=PredictedEvidence.from_labels(task.evidence, dataset["labels"]),
            structures=structures,
            measures=tuple(morphometry_names(list(structures), 1)),
        )
        heads[name] = head = CaseHead(description, channels)
        with torch.no_grad():
            for values in [*head.parameters(), head.feature_mean]:
                values.copy_(torch.randn_like(values) * 0.05)  # measures reach 20: larger weights make every class certain
            head.feature_scale.copy_(torch.rand_like(head.feature_scale) + 0.5)
    return heads


def _add_random_trees(heads: Mapping[str, CaseHead], trees: int, cases: int) -> None:
    """Trees grown on as many random cases."""
    for head in heads.values():
        task, random = head.description.task, np.random.default_rng(cases)
        vectors = random.normal(size=(cases, len(head.feature_mean)))
        shape = (cases, task.num_classes) if task.is_multilabel else cases
        targets = list(random.integers(0, 2 if task.is_multilabel else task.num_classes, shape))
        grow_trees(head, vectors, targets, np.ones(cases), trees, seed=0)


def write_model(
    folder: Path,
    *,
    folds: tuple[int | str, ...] = (0,),
    classification: bool | Mapping[str, Any] = False,
    pooling: str = "mean_max",
    level: str = "patch",
    morphometry: bool = False,
    trees: int = 0,
    trainer_name: str = "nnUNetTrainer",
    plans_content: dict | None = None,
    dataset: dict | None = None,
    **checkpoint_entries: Any,
) -> Path:
    """Write the folder of a trained model, every fold with other weights; returns the folder."""
    plans_content = plans_content or plans()
    dataset = dataset or dataset_json()
    for index, fold in enumerate(folds):
        heads = {"classification": classification, "pooling": pooling, "level": level, "morphometry": morphometry, "trees": trees}
        network = random_network(plans_content, dataset, seed=index, **heads)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer_name,
            "init_args": {
                "plans": plans_content,
                "configuration": next(iter(plans_content["configurations"])),
                "fold": fold,
                "dataset_json": dataset,
            },
            "inference_allowed_mirroring_axes": (0, 1, 2)[: len(next(iter(plans_content["configurations"].values()))["patch_size"])],
        }
        if classification:
            checkpoint["classification"] = classification_entry(network.heads)
        (folder / f"fold_{fold}").mkdir(parents=True)
        torch.save(checkpoint | checkpoint_entries, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans_content))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def write_images(folder: Path, number: int = 3, size: tuple[int, int, int] = (20, 22, 18), spacing=(1.0, 1.0, 1.0)) -> list[str]:
    """Write images ``case_0_0000.nii.gz`` with a geometry of their own; returns the identifiers."""
    folder.mkdir(parents=True, exist_ok=True)
    identifiers = []
    for index in range(number):
        generator = np.random.default_rng(index)
        image = sitk.GetImageFromArray(generator.normal(size=size).astype(np.float32) + 5)
        image.SetSpacing(spacing)
        image.SetOrigin((10.0 + index, -20.0, 30.0))
        image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, 1))
        sitk.WriteImage(image, str(folder / f"case_{index}_0000.nii.gz"))
        identifiers.append(f"case_{index}")
    return identifiers

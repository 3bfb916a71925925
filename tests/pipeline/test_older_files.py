"""Trainings, models and trainers that older versions of nnU-Net v2 left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_datasets import PLANS, write_tiny_dataset
from tiny_models import dataset_json, plans, random_network, write_images, write_model
from tiny_trainings import make_trainer, same, weights

from nnunetv2.cli.plan_and_preprocess import plan_and_preprocess_entry
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_io import load_json

Folders = dict[str, Path]
DATASET = "Dataset002_Plain"
IMAGE = np.random.default_rng(0).normal(size=(1, 20, 18, 16)).astype(np.float32)


def older_plans(content: dict[str, Any], base_features: int, most_features: int) -> dict[str, Any]:
    """The same plans as nnU-Net 2.2 and older wrote them."""
    content = json.loads(json.dumps(content))
    content["foreground_intensity_properties_by_modality"] = content.pop("foreground_intensity_properties_per_channel")
    content.pop("label_manager", None)
    for configuration in content["configurations"].values():
        if "architecture" not in configuration:
            continue
        architecture = configuration.pop("architecture")
        kwargs = architecture["arch_kwargs"]
        strides = kwargs["strides"]
        configuration |= {
            "UNet_class_name": architecture["network_class_name"].split(".")[-1],
            "UNet_base_num_features": base_features,
            "unet_max_num_features": most_features,
            "n_conv_per_stage_encoder": kwargs.get("n_conv_per_stage", kwargs.get("n_blocks_per_stage")),
            "n_conv_per_stage_decoder": kwargs["n_conv_per_stage_decoder"],
            "num_pool_per_axis": np.log2(np.prod(strides, axis=0)).astype(int).tolist(),
            "pool_op_kernel_sizes": strides,
            "conv_kernel_sizes": kwargs["kernel_sizes"],
        }
    return content


def older_dataset_json(content: dict[str, Any]) -> dict[str, Any]:
    """The same with the older name of channels."""
    return {"modality" if key == "channel_names" else key: value for key, value in content.items()}


def logits_of(folder: Path, **options: Any) -> torch.Tensor:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, **options)
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    return predictor.predict_logits_from_preprocessed_data(torch.from_numpy(IMAGE))


def test_a_model_of_nnunet_2_2_predicts_as_it_did(tmp_path: Path) -> None:
    new = write_model(tmp_path / "new")
    old = shutil.copytree(new, tmp_path / "old")
    (old / "plans.json").write_text(json.dumps(older_plans(plans(), 4, 8)))
    (old / "dataset.json").write_text(json.dumps(older_dataset_json(dataset_json())))
    file = old / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["inference_allowed_mirroring_axes"]
    torch.save(checkpoint, file)
    with pytest.warns(UserWarning, match="2.2 or older"):
        found = logits_of(old)
    assert torch.equal(found, logits_of(new, use_mirroring=False))
    write_images(tmp_path / "images", number=1)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    with pytest.warns(UserWarning, match="2.2 or older"):
        predictor.initialize_from_trained_model_folder(str(old), (0,))
    predictor.predict_from_files_sequential(str(tmp_path / "images"), str(tmp_path / "out"))
    assert (tmp_path / "out" / "case_0.nii.gz").is_file()


def test_cases_as_npz_and_older_plans_train_to_the_same_weights(tiny_training: Folders, tmp_path: Path, monkeypatch) -> None:
    new = make_trainer(nnUNetTrainer, tiny_training["preprocessed"], dataset=DATASET, num_epochs=1)
    new.run_training()
    old = tmp_path / "old"
    shutil.copytree(tiny_training["preprocessed"] / DATASET, old / DATASET)
    content = load_json(old / DATASET / f"{PLANS}.json")
    architecture = content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    features = architecture["features_per_stage"]
    (old / DATASET / f"{PLANS}.json").write_text(json.dumps(older_plans(content, features[0], max(features))))
    (old / DATASET / "dataset.json").write_text(json.dumps(older_dataset_json(load_json(old / DATASET / "dataset.json"))))
    folder = old / DATASET / content["configurations"]["3d_fullres"]["data_identifier"]
    blosc = nnUNetDatasetBlosc2(str(folder))
    for identifier in blosc.identifiers:
        data, seg, _, properties = blosc.load_case(identifier)
        nnUNetDatasetNumpy.save_case(data[:], seg[:].astype(np.int8), properties, str(folder / identifier))
    for file in folder.glob("*.b2nd"):
        file.unlink()
    monkeypatch.setenv("nnUNet_preprocessed", str(old))
    with pytest.warns(UserWarning, match="2.2 or older"):
        trainer = make_trainer(nnUNetTrainer, old, dataset=DATASET, num_epochs=1)
    trainer.run_training()
    assert trainer.dataset_class is nnUNetDatasetNumpy
    assert (folder / "case_000.npy").is_file()
    assert same(weights(trainer), weights(new))


def test_a_dataset_that_names_modalities_is_planned_and_preprocessed(nnunet_folders: Folders) -> None:
    folder = nnunet_folders["raw"] / "Dataset003_Old"
    write_tiny_dataset(folder, num_cases=2)
    (folder / "dataset.json").write_text(json.dumps(older_dataset_json(load_json(folder / "dataset.json"))))
    options = ["-c", "3d_fullres", "-np", "1", "-npfp", "1", "--no_pbar", "--verify_dataset_integrity"]
    plan_and_preprocess_entry(["-d", "3", "-pl", "nnUNetPlannerResEncXS", *options])
    preprocessed = nnunet_folders["preprocessed"] / "Dataset003_Old"
    assert load_json(preprocessed / f"{PLANS}.json")["configurations"]["3d_fullres"]["normalization_schemes"] == ["ZScoreNormalization"]
    assert len(list(preprocessed.rglob("case_00?.b2nd"))) == 2


# --- signatures of build_network_architecture


def build_2_0(plans_manager, dataset_json, configuration_manager, num_input_channels, enable_deep_supervision: bool = True):
    outputs = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
    return nnUNetTrainer.build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, outputs, enable_deep_supervision
    )


def build_2_4(
    architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels, num_output_channels, enable_deep_supervision=True
):  # fmt: skip
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    return get_network_from_plans(
        architecture_class_name,
        arch_init_kwargs,
        arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        deep_supervision=enable_deep_supervision,
    )


def build_2_4_renamed(arch, kwargs, imports, n_in, n_out, deep=True):
    return build_2_4(arch, kwargs, imports, n_in, n_out, deep)


def build_in_another_order(
    num_output_channels, configuration_manager, *, enable_deep_supervision, num_input_channels, plans_manager, pretrained=None
):  # fmt: skip
    assert pretrained is None
    return nnUNetTrainer.build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
    )


def build_renamed(plans_manager, configuration, channels, outputs, deep):
    return nnUNetTrainer.build_network_architecture(plans_manager, configuration, channels, outputs, deep)


def build_passing_on(*arguments: Any, **further: Any):
    return nnUNetTrainer.build_network_architecture(*arguments, **further)


OLDER = [build_2_0, build_2_4, build_2_4_renamed, build_in_another_order]
CURRENT = [build_renamed, build_passing_on, nnUNetTrainer.build_network_architecture]


@pytest.mark.parametrize("build", [*OLDER, *CURRENT], ids=lambda build: build.__name__)
def test_every_signature_of_a_network_trains_and_predicts(
    build: Callable, tiny_training: Folders, tmp_path: Path, monkeypatch, recwarn
) -> None:
    class Trainer(nnUNetTrainer):
        build_network_architecture = staticmethod(build)

    trainer = make_trainer(Trainer, tiny_training["preprocessed"], dataset=DATASET)
    trainer.initialize()
    assert trainer.network.decoder.deep_supervision
    model = write_model(tmp_path / "model")
    expected = logits_of(model)
    monkeypatch.setattr("nnunetv2.inference.trained_model.recursive_find_trainer_class_by_name", lambda _: Trainer)
    recwarn.clear()
    assert torch.equal(logits_of(model), expected)
    warned = [str(entry.message) for entry in recwarn if entry.category is DeprecationWarning and "signature" in str(entry.message)]
    assert len(warned) == (build in OLDER)


def test_a_trainer_of_somebody_else_continues_to_predict_with_the_network_of_the_plans(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", trainer_name="nnUNetTrainerOfAnOldVersion")
    with pytest.warns(UserWarning, match="nnUNetTrainerOfAnOldVersion.*built from the plans"):
        found = logits_of(model, use_mirroring=False)
    network = random_network(plans(), dataset_json(), seed=0)
    assert found.shape[0] == network.decoder.seg_layers[-1].out_channels

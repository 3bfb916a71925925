"""The exported model here, and with stock nnU-Net 2.8.1 where ``NNUNET_REFERENCE`` names the Python of an environment that has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from stock_nnunet import files_of, run_reference, run_reference_program
from tiny_datasets import PLANS, tiny_case, write_image
from tiny_models import CLASSIFICATION, dataset_json, plans, write_images, write_model
from tiny_trainings import same

from nnunetv2.cli.export_segmentation_model import main
from nnunetv2.cli.predict import predict_modelfolder_entry
from nnunetv2.cli.train import main as train
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.export_segmentation_model import CHECKPOINT_KEYS, export_segmentation_model
from nnunetv2.training.logging.nnunet_logger import SEGMENTATION_KEYS

NAME, STOCK_NAME = (f"{trainer}__nnUNetPlans__3d_fullres" for trainer in ("nnUNetTrainerMultitask", "nnUNetTrainer"))
PRIVATE = {"case_labels": {"case_1": {"subtype": "a"}}, "case_groups": {"case_1": "Jane Doe"}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two folds with heads and everything else that our checkpoints hold."""
    folder = write_model(
        tmp_path / NAME,
        folds=(0, 1),
        classification=True,
        trainer_name="nnUNetTrainerMultitask",
        dataset=dataset_json(classification=CLASSIFICATION, **PRIVATE),
        refitted_heads={"weights": {}, "classification": None},
        head_optimizer_state={},
        training_state={"seed": 1},
        logging={key: [0.5] for key in (*SEGMENTATION_KEYS, "classification/case_score")},
        optimizer_state={"state": {}},
        _best_ema=0.5,
        current_epoch=2,
    )
    shutil.copy(folder / "fold_0" / "checkpoint_final.pth", folder / "fold_0" / "checkpoint_best.pth")
    (folder / "dataset_fingerprint.json").write_text('{"spacings": []}')
    (folder / "classification_calibration.json").write_text("{}")
    return folder


def read(folder: Path, fold: int = 0, name: str = "checkpoint_final.pth") -> dict[str, Any]:
    return torch.load(folder / f"fold_{fold}" / name, weights_only=True)


def test_the_export_holds_what_stock_nnunet_writes_and_nothing_else(model, tmp_path) -> None:
    shutil.copytree(model / "fold_0", model / "fold_0_old")
    before = {name: (model / name).read_bytes() for name in files_of(model)}
    exported = export_segmentation_model(model, tmp_path / "new" / "export")
    assert exported.stock_folder_name == STOCK_NAME
    files = ["dataset.json", "dataset_fingerprint.json", "plans.json"]
    assert files_of(exported.folder) == sorted([*files, "fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth"])
    assert (exported.folder / "plans.json").read_bytes() == before["plans.json"]
    assert json.loads((exported.folder / "dataset.json").read_text()) == dataset_json()
    for fold in (0, 1):
        original, found = read(model, fold), read(exported.folder, fold)
        assert set(found) <= set(CHECKPOINT_KEYS)
        assert found["trainer_name"] == "nnUNetTrainer"
        assert found["init_args"]["dataset_json"] == dataset_json()
        assert list(found["logging"]) == list(SEGMENTATION_KEYS)
        assert exported.num_head_weights == len(original["network_weights"]) - len(found["network_weights"]) > 0
        kept = {key: value for key, value in original["network_weights"].items() if not key.startswith("classification_heads.")}
        assert same(found["network_weights"], kept)
        for key in ("optimizer_state", "_best_ema", "current_epoch", "inference_allowed_mirroring_axes"):
            assert found[key] == original[key]
    assert {name: (model / name).read_bytes() for name in files_of(model)} == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["export"]  # nothing temporary is left


def test_the_exported_model_predicts_the_same_segmentation(model, tmp_path) -> None:
    export_segmentation_model(model, tmp_path / "export")
    data = torch.randn(1, 20, 16, 18, generator=torch.Generator().manual_seed(0))
    logits = []
    for folder in (model, tmp_path / "export"):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), (0, 1))
        logits.append(predictor.predict_logits_from_preprocessed_data(data))
    assert predictor.classification_tasks == {}
    assert torch.equal(*logits)


def test_folds_and_checkpoints_are_chosen_and_missing_ones_named(model, tmp_path, capsys) -> None:
    main(["-m", str(model), "-o", str(tmp_path / "one"), "-f", "0", "-chk", "checkpoint_best.pth", "checkpoint_final.pth"])
    assert [name for name in files_of(tmp_path / "one") if name.startswith("fold")] == [
        "fold_0/checkpoint_best.pth",
        "fold_0/checkpoint_final.pth",
    ]
    printed = capsys.readouterr().out
    assert "tensors of classification heads" in printed
    assert STOCK_NAME in printed
    for options, message in (
        (["-chk", "checkpoint_best.pth", "checkpoint_final.pth", "-f", "1"], "fold_1/checkpoint_best.pth"),
        (["-chk", "checkpoint_latest.pth"], "There is: fold_0/checkpoint_best.pth"),
    ):
        with pytest.raises(SystemExit):
            main(["-m", str(model), "-o", str(tmp_path / "two"), *options])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["-m", str(tmp_path / "none"), "-o", str(tmp_path / "two")])
    assert "There is no trained model in" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_a_model_is_found_by_its_dataset(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results" / "Dataset999_Tiny").mkdir(parents=True)
    model.rename(tmp_path / "results" / "Dataset999_Tiny" / NAME)
    main(["-d", "999", "-c", "3d_fullres", "-o", str(tmp_path / "results" / "Dataset999_Tiny" / STOCK_NAME)])
    assert (tmp_path / "results" / "Dataset999_Tiny" / STOCK_NAME / "fold_1" / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize("options", [["-m", "x", "-d", "1"], [], ["-d", "1"], ["-c", "2d"]])
def test_the_model_is_named_in_one_way(options, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*options, "-o", "out"])
    assert caught.value.code == 2
    assert "-m" in capsys.readouterr().err


def test_nothing_is_overwritten(model, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    main(["-m", str(model), "-o", str(tmp_path / "empty")])
    assert (tmp_path / "empty" / "plans.json").is_file()
    for name in ("file", "full", NAME, "empty"):
        with pytest.raises(SystemExit):
            main(["-m", str(model), "-o", str(tmp_path / name)])
        assert "exists already and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_a_network_that_stock_would_not_build_is_refused_and_leaves_nothing(model, tmp_path) -> None:
    file = model / "fold_1" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["network_weights"]["encoder.adapter.weight"] = torch.zeros(1)
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match="fold_1.*nnUNetTrainerMultitask has another network.*encoder.adapter.weight"):
        export_segmentation_model(model, tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_model_without_heads_is_exported_as_it_is(tmp_path, capsys) -> None:
    model = write_model(tmp_path / "nnUNetTrainer_5epochs__nnUNetPlans__2d", plans_content=plans(2), trainer_name="nnUNetTrainer_5epochs")
    main(["-m", str(model), "-o", str(tmp_path / "export")])
    assert same(read(model)["network_weights"], read(tmp_path / "export")["network_weights"])
    printed = capsys.readouterr().out
    assert "had no classification heads" in printed
    assert "nnUNetTrainer__nnUNetPlans__2d" in printed
    assert "has no dataset_fingerprint.json" in printed


# --- with stock nnU-Net, a program that is run and nothing more


TRAIN_NOTHING = r"""
import json, sys, torch
from os.path import join
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
folder, plans = sys.argv[1:]
plans, dataset_json = (json.load(open(join(folder, name + '.json'))) for name in (plans, 'dataset'))
plans['continue_training'] = False  # as its nnUNetv2_train does
trainer = nnUNetTrainer(plans, '3d_fullres', 0, dataset_json, torch.device('cpu'))
torch.manual_seed(5)
trainer.initialize()
trainer.inference_allowed_mirroring_axes = (0, 1, 2)
trainer.save_checkpoint(join(trainer.output_folder, 'checkpoint_final.pth'))
print('CHECKPOINT', join(trainer.output_folder, 'checkpoint_final.pth'))
"""


GO_ON = r"""
import json, sys, torch
from os.path import join
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
folder, plans, checkpoint = sys.argv[1:]
plans, dataset_json = (json.load(open(join(folder, name + '.json'))) for name in (plans, 'dataset'))
plans['continue_training'] = False  # as its nnUNetv2_train does
trainer = nnUNetTrainer(plans, '3d_fullres', 0, dataset_json, torch.device('cpu'))
trainer.initialize()
load_pretrained_weights(trainer.network, checkpoint)
trainer.load_checkpoint(checkpoint)
trainer.set_deep_supervision_enabled(True)
size = trainer.configuration_manager.patch_size
sum(output.sum() for output in trainer.network(torch.zeros(1, 1, *size))).backward()
trainer.optimizer.step()  # its momenta have to fit the weights
print('EPOCH', trainer.current_epoch)
"""


@pytest.mark.slow
def test_stock_nnunet_predicts_the_same_with_an_exported_training(reference, tiny_training, tmp_path, monkeypatch) -> None:
    train(
        ["1", "3d_fullres", "0", "-tr", "nnUNetTrainerMultitask", "-p", PLANS, "-device", "cpu", "--seed", "1", "--epochs", "1",
         "--iterations_per_epoch", "3"]
    )  # fmt: skip
    model = tiny_training["results"] / "Dataset001_Classes" / f"nnUNetTrainerMultitask__{PLANS}__3d_fullres"
    main(["-m", str(model), "-o", str(tmp_path / "export")])
    (tmp_path / "images").mkdir()
    for index in (100, 101):
        write_image(tiny_case(index)[0], tmp_path / "images" / f"new_{index}_0000.nii.gz")
    options = ["-i", str(tmp_path / "images"), "-f", "0", "-device", "cpu", "--save_probabilities"]
    monkeypatch.setenv("nnUNet_half_accumulation", "1")  # its sums of tiles are float16
    predict_modelfolder_entry(["-m", str(model), "-o", str(tmp_path / "ours"), *options])
    folders = {f"nnUNet_{name}": tiny_training[name] for name in ("raw", "preprocessed", "results")}
    program = reference / "nnUNetv2_predict_from_modelfolder"
    run_reference(program, "-m", tmp_path / "export", "-o", tmp_path / "stock", *options, "-npp", 1, "-nps", 1, **folders)
    for index in (100, 101):
        masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / side / f"new_{index}.nii.gz"))) for side in ("ours", "stock")]
        np.testing.assert_array_equal(*masks)
        probabilities = [np.load(tmp_path / side / f"new_{index}.npz")["probabilities"] for side in ("ours", "stock")]
        np.testing.assert_allclose(*probabilities, atol=1e-3)
        assert np.ptp(probabilities[0][1]) > 0.01  # not everywhere the same
    folders["nnUNet_results"] = tmp_path / "stock_results"
    checkpoint = tmp_path / "export" / "fold_0" / "checkpoint_final.pth"
    printed = run_reference_program(reference, GO_ON, tiny_training["preprocessed"] / "Dataset001_Classes", PLANS, checkpoint, **folders)
    assert printed.splitlines()[-1] == "EPOCH 1"


@pytest.mark.slow
def test_a_checkpoint_of_stock_nnunet_is_a_warm_start_and_gets_heads(reference, tiny_training, tmp_path, capsys) -> None:
    folders = {f"nnUNet_{name}": tiny_training[name] for name in ("raw", "preprocessed")}
    preprocessed = tiny_training["preprocessed"] / "Dataset001_Classes"
    printed = run_reference_program(reference, TRAIN_NOTHING, preprocessed, PLANS, nnUNet_results=tmp_path / "stock", **folders)
    stock = printed.rsplit("CHECKPOINT", 1)[1].strip()
    weights = torch.load(stock, weights_only=False)["network_weights"]
    options = ["-p", PLANS, "-device", "cpu", "--seed", "1", "--epochs", "1", "--iterations_per_epoch", "1", "-pretrained_weights", stock]

    train(["1", "3d_fullres", "0", "-tr", "nnUNetTrainerMultitask", *options])
    assert "tensors taken over" in capsys.readouterr().out

    train(["1", "3d_fullres", "1", "-tr", "nnUNetTrainerMultitask", *options, "--refit_heads"])
    model = tiny_training["results"] / "Dataset001_Classes" / f"nnUNetTrainerMultitask__{PLANS}__3d_fullres"
    refitted = read(model, 1)
    assert refitted["refitted_heads"]
    assert all(torch.equal(refitted["network_weights"][key], value) for key, value in weights.items())
    write_images(tmp_path / "images", number=1)
    predict_modelfolder_entry(
        ["-m", str(model), "-i", str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-f", "1", "-device", "cpu", "--save_saliency"]
    )
    assert (tmp_path / "out" / "classification.csv").read_text().startswith("identifier,subtype")
    assert len(list((tmp_path / "out" / "saliency").iterdir())) == 4

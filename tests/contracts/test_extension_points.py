"""User-style classes at every extension point, written from nnU-Net's interface alone, go through the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_datasets import PLANS, tiny_case, write_image

import nnunetv2
from nnunetv2.cli.predict import predict_entry
from nnunetv2.cli.train import main as train

USERS_TRAINERS = Path(__file__).with_name("users_trainers.py")


@pytest.fixture
def users_folder(tiny_training: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """The folders of the tiny datasets, with a folder of trainers and new images."""
    (tmp_path / "my_trainers").mkdir()
    shutil.copy(USERS_TRAINERS, tmp_path / "my_trainers" / "users_trainers_copy.py")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "my_trainers"))
    (tmp_path / "images").mkdir()
    write_image(tiny_case(100)[0], tmp_path / "images" / "new_0000.nii.gz")
    yield {**tiny_training, "images": tmp_path / "images", "output": tmp_path / "output"}


def check_training(trainer: str, fold: Path) -> None:
    """What is particular to each trainer."""
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    log = next(fold.glob("training_log*.txt")).read_text()
    assert checkpoint["trainer_name"] == trainer
    if trainer == "OwnSteps":
        assert len(checkpoint["logging"]["largest_logit"]) == 1  # a curve of its own
        assert checkpoint["optimizer_state"]["param_groups"][0]["weight_decay"] == 1e-4
        assert "betas" in checkpoint["optimizer_state"]["param_groups"][0]
    elif trainer in ("OwnNetwork", "OwnNetworkOf20"):
        assert next(iter(checkpoint["network_weights"])) == "layers.0.weight"
    elif trainer == "OwnNetworkOf24":
        assert any("decoder.stages.0.convs.1" in key for key in checkpoint["network_weights"])
    elif trainer == "OwnAugmentation":
        assert checkpoint["inference_allowed_mirroring_axes"] == (0,)
    elif trainer == "OwnDataloaders":
        validated = json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]
        assert len(validated) == 2
        assert "splits_final.json" not in log  # nobody asked for it


@pytest.mark.parametrize(
    ("trainer", "workers"),
    [
        ("OwnSteps", 0),
        ("OwnNetwork", 0),
        ("OwnNetworkOf24", 0),
        ("OwnNetworkOf20", 0),
        ("OwnAugmentation", 0),
        ("OwnDataloaders", 0),
        ("OwnDataloaders", 1),
    ],
)
@pytest.mark.filterwarnings("ignore:.*before 2.7:DeprecationWarning")
def test_a_users_trainer_trains_and_predicts(
    trainer: str, workers: int, users_folder: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    model = ["-tr", trainer, "-p", PLANS]
    train(["2", "3d_fullres", "0", *model, "-device", "cpu", "--epochs", "1", "--iterations_per_epoch", "1"])
    check_training(trainer, users_folder["results"] / "Dataset002_Plain" / f"{trainer}__{PLANS}__3d_fullres" / "fold_0")
    folders = ["-i", str(users_folder["images"]), "-o", str(users_folder["output"])]
    predict_entry([*folders, "-d", "2", *model, "-c", "3d_fullres", "-f", "0", "-device", "cpu", "-npp", "0", "-nps", "0"])
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(users_folder["output"] / "new.nii.gz")))
    assert segmentation.shape == tiny_case(100)[0].shape
    assert set(np.unique(segmentation)) <= {0, 1, 2}


# --- classes that users put into the package itself

READER = """
import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

class NumpyIO(BaseReaderWriter):
    supported_file_endings = [".npy"]

    def read_images(self, image_fnames):
        images = [np.load(f)[None] for f in image_fnames]
        if not self._check_all_same([i.shape for i in images]):
            raise RuntimeError("shapes differ")
        return np.vstack(images).astype(np.float32), {"spacing": [1.0, 1.0, 1.0], "shape": images[0].shape[1:]}

    def read_seg(self, seg_fname):
        return self.read_images((seg_fname,))

    def write_seg(self, seg, output_fname, properties):
        assert seg.shape == tuple(properties["shape"])
        np.save(output_fname, seg.astype(np.uint8))
"""

NORMALIZATION = """
import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

class TenTimesMeanNormalization(ImageNormalization):
    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray = None) -> np.ndarray:
        assert self.intensityproperties is not None and "mean" in self.intensityproperties
        return np.full(image.shape, 10, dtype=self.target_dtype) + (image > self.intensityproperties["mean"])
"""

PREPROCESSOR = '''
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

class MergingPreprocessor(DefaultPreprocessor):
    """Label 2 becomes label 1."""

    def run_case_npy(self, data, seg, properties, plans_manager, configuration_manager, dataset_json):
        data, seg, properties = super().run_case_npy(data, seg, properties, plans_manager, configuration_manager, dataset_json)
        properties["preprocessed_by"] = "MergingPreprocessor"
        return data, seg, properties

    def modify_seg_fn(self, seg, plans_manager, dataset_json, configuration_manager):
        seg[seg == 2] = 1
        return seg
'''

PLANNER = """
from typing import List, Tuple, Union
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

class SmallPlanner(ExperimentPlanner):
    def __init__(self, dataset_name_or_id: Union[str, int], gpu_memory_target_in_gb: float = 8,
                 preprocessor_name: str = "DefaultPreprocessor", plans_name: str = "SmallPlans",
                 overwrite_target_spacing: Union[List[float], Tuple[float, ...]] = None, suppress_transpose: bool = False):
        super().__init__(dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing,
                         suppress_transpose)
        self.UNet_base_num_features = 4
        self.UNet_max_features_3d = 8

    def generate_data_identifier(self, configuration_name: str) -> str:
        return "small_" + configuration_name

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self):
        return ["TenTimesMeanNormalization"], [False]

    def get_plans_for_configuration(self, spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache):
        plan = super().get_plans_for_configuration(spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        plan["batch_size"] = 3
        return plan
"""

PLACES = {
    "imageio/numpy_reader_writer.py": READER,
    "preprocessing/normalization/ten_times_mean.py": NORMALIZATION,
    "preprocessing/preprocessors/merging_preprocessor.py": PREPROCESSOR,
    "experiment_planning/experiment_planners/small_planner.py": PLANNER,
}

COMMANDS = """
from nnunetv2.cli.plan_and_preprocess import plan_and_preprocess_entry
from nnunetv2.cli.predict import predict_entry
from nnunetv2.cli.train import main as train
if __name__ == "__main__":
    plan_and_preprocess_entry(["-d", "5", "-pl", "SmallPlanner", "-preprocessor_name", "MergingPreprocessor", "-c", "3d_fullres",
                               "-np", "1", "-npfp", "1", "--verify_dataset_integrity"])
    model = ["-tr", "OwnAugmentation", "-p", "SmallPlans"]
    train(["5", "3d_fullres", "0", *model, "-device", "cpu", "--epochs", "1", "--iterations_per_epoch", "1"])
    predict_entry(["-i", "images", "-o", "output", "-d", "5", *model, "-c", "3d_fullres", "-f", "0", "-device", "cpu", "-npp", "0", "-nps", "0"])
"""


def test_planner_reader_normalization_and_preprocessor_of_a_user(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(Path(nnunetv2.__file__).parent, tmp_path / "nnunetv2", ignore=shutil.ignore_patterns("__pycache__"))
    for place, content in PLACES.items():
        (tmp_path / "nnunetv2" / place).write_text(content)
    shutil.copy(USERS_TRAINERS, tmp_path / "nnunetv2" / "training" / "nnUNetTrainer" / "users_trainers_copy.py")
    (tmp_path / "commands.py").write_text(COMMANDS)
    write_numpy_dataset(nnunet_folders["raw"] / "Dataset005_Numpy", number=5)
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "new_0000.npy", tiny_case(100)[0])
    done = subprocess.run(
        [sys.executable, "commands.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    folder = nnunet_folders["preprocessed"] / "Dataset005_Numpy"
    plans = json.loads((folder / "SmallPlans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    assert (plans["experiment_planner_used"], plans["image_reader_writer"]) == ("SmallPlanner", "NumpyIO")
    assert (configuration["preprocessor_name"], configuration["normalization_schemes"]) == (
        "MergingPreprocessor",
        ["TenTimesMeanNormalization"],
    )
    assert (configuration["batch_size"], configuration["data_identifier"]) == (3, "small_3d_fullres")
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"][0] == 4

    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder / "small_3d_fullres")).load_case("case_001")
    assert set(np.unique(data[:])) <= {10.0, 11.0} and len(np.unique(data[:])) == 2
    assert set(np.unique(seg[:])) == {0, 1}
    assert properties["preprocessed_by"] == "MergingPreprocessor"
    assert np.load(tmp_path / "output" / "new.npy").shape == tiny_case(100)[0].shape


def write_numpy_dataset(folder: Path, number: int) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index in range(number):
        image, segmentation, _ = tiny_case(index)
        np.save(folder / "imagesTr" / f"case_{index:03d}_0000.npy", image)
        np.save(folder / "labelsTr" / f"case_{index:03d}.npy", segmentation)
    content: dict[str, Any] = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": number,
        "file_ending": ".npy",
        "overwrite_image_reader_writer": "NumpyIO",
    }
    (folder / "dataset.json").write_text(json.dumps(content))

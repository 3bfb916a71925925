"""A cascade here and in the published nnunetv2 2.8.1: plans, preprocessed cases, predictions of both stages from one checkpoint.

    python tests/reference/cascade_parity.py --tool PARITY.PY --reference REFERENCE/bin/python --raw RAW --dataset 27 --images IMAGES

``--tool`` is the comparison of whole runs, whose steps this script uses; it lacks cascades. The planner is nnU-Net's with a larger
``lowres_creation_threshold`` and less memory, which makes a cascade for small images too. The second stage sees the first stage's segmentations
of the reference on both sides.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

PLAN = r"""
import sys
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

class CascadePlanner(ExperimentPlanner):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lowres_creation_threshold = float(sys.argv[2])

CascadePlanner(int(sys.argv[1]), gpu_memory_target_in_gb=float(sys.argv[3])).plan_experiment()
"""

PREDICT = r"""
import sys
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
model, images, out, previous = sys.argv[1:5]
predictor = nnUNetPredictor(tile_step_size=0.5, use_gaussian=True, use_mirroring=True, perform_everything_on_device=False,
                            device=torch.device('cpu'), verbose=False, allow_tqdm=False)
predictor.initialize_from_trained_model_folder(model, use_folds=(0,), checkpoint_name='checkpoint_final.pth')
predictor.predict_from_files(images, out, save_probabilities=True, overwrite=True, num_processes_preprocessing=1,
                             num_processes_segmentation_export=1, folder_with_segs_from_prev_stage=previous or None)
"""


def load(tool: Path) -> ModuleType:
    """The comparison of whole runs as a module."""
    specification = importlib.util.spec_from_file_location("parity", tool)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def compare_predictions(report, ending: str, folders: list[Path], what: str) -> None:
    """Labels and probabilities of the same cases, within the bounds of the tool."""
    import SimpleITK as sitk

    names = [sorted(path.name for path in folder.glob(f"*{ending}")) for folder in folders]
    report.line(names[0] == names[1] and bool(names[0]), f"{what}: files", f"{len(names[0])} and {len(names[1])}")
    for name in names[0]:
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))) for folder in folders)
        key = name[: -len(ending)] + ".npz"
        p, q = (np.load(folder / key)["probabilities"].astype(np.float32) for folder in folders)
        agree, gap = float((a == b).mean()), np.abs(p - q).max(axis=0)
        close = float((gap <= 1e-3).mean())
        report.line(
            agree >= 0.9999 and close >= 0.9999 and gap.max() <= 0.05,
            f"{what}: {name}",
            f"labels equal {agree:.6f} of {np.unique(b).tolist()}, probabilities within 1e-3 {close:.6f}, largest {gap.max():.2g}",
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", required=True, type=Path)
    parser.add_argument("--ours", default=sys.executable)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--raw", required=True, type=Path)
    parser.add_argument("--dataset", required=True, type=int)
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--threshold", type=float, default=0.9, help="lowres_creation_threshold (default: %(default)s)")
    parser.add_argument("--memory", type=float, default=1.0, help="of the planner, in GB (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=None)
    args = parser.parse_args()
    parity = load(args.tool)
    work = (args.work or Path(tempfile.mkdtemp(prefix="cascade-"))).absolute()
    dataset = next(path.name for path in sorted(args.raw.iterdir()) if path.name.startswith(f"Dataset{args.dataset:03d}_"))
    ours, reference = (
        parity.Side(name, Path(python).absolute(), args.raw.absolute(), work)
        for name, python in (("ours", args.ours), ("reference", args.reference))
    )
    report = parity.Report()
    for side in (ours, reference):
        side.run("nnUNetv2_extract_fingerprint", "-d", args.dataset)
        side.script(PLAN, args.dataset, args.threshold, args.memory)
        side.run("nnUNetv2_preprocess", "-d", args.dataset, "-plans_name", "nnUNetPlans", "-c", "3d_lowres", "3d_fullres", "-np", 1)
    plans_files = [side.preprocessed / dataset / "nnUNetPlans.json" for side in (ours, reference)]
    plans = [json.loads(file.read_text()) for file in plans_files]
    found = [difference for difference in parity.walk(*plans, tolerance=1e-9) if difference[0] != "extra"]
    report.line(not found, "plans", str(found[:5]) if found else "")
    report.line("3d_cascade_fullres" in plans[1]["configurations"], "the plans have a cascade")
    for folder in ("nnUNetPlans_3d_lowres", "nnUNetPlans_3d_fullres"):
        parity.compare_cases(report, ours, reference, folder, work, dataset)

    dataset_json = plans_files[1].parent / "dataset.json"
    ending = json.loads(dataset_json.read_text())["file_ending"]
    previous = ""
    for configuration in ("3d_lowres", "3d_cascade_fullres"):
        for saver in (reference, ours):
            saved = saver.script(parity.SAVE_RANDOM_CHECKPOINT, plans_files[1], dataset_json, configuration)
            model = saved.strip().splitlines()[-1]
            folders = []
            for side in (ours, reference):
                folders.append(work / side.name / f"prediction_of_{saver.name}_{configuration}")
                side.script(PREDICT, model, args.images.absolute(), folders[-1], previous)
            compare_predictions(report, ending, folders, f"{configuration}: predictions of a checkpoint saved by {saver.name}")
        previous = work / "reference" / "prediction_of_reference_3d_lowres"
    print(f"\n{report.differences} difference(s)")
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())

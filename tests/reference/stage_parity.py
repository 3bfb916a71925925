"""Numbers of every stage here and in the published nnunetv2 2.8.1, in little time: for any planners, regions, ignore labels and cascades.

    python tests/reference/stage_parity.py --reference REFERENCE/bin/python --raw RAW --dataset 4 --cases 5

Two Python interpreters run the same steps on the same files: ``--ours`` (default: this one) has this package, ``--reference`` has
``nnunetv2==2.8.1`` from the package index, in an environment of its own. ``RAW`` is a folder as nnUNet_raw is. Each of the two runs three times in
all, whatever the number of datasets, planners and cases. Compared are

* the fingerprint and the plans of the whole dataset, by every planner of nnU-Net unless ``--planners`` names some: every number within 1e-6 and
  1e-9, relative; keys that only we write do not count,
* ``--cases`` preprocessed by each of these plans, as the stored files are read: image (within 1e-4 of a normalised grey value), segmentation, crop
  box and sampled class locations row by row,
* with ``--images``, segmentations and probabilities of the smallest of these cases, predicted by a network with random weights (of ``--features``
  features, to be fast), once from a checkpoint saved by the reference and once from one saved here, read by both. Labels are equal in 99.99 % of
  the voxels, probabilities within 1e-3 in as many, and nowhere more than 0.05 apart. Tiles are added up in float16 here too, as the reference does.

``--cascade`` makes the planners add a cascade where the images are too small for one. Its second stage sees what the reference predicted in the
first stage, on both sides. Steps that are done in the folder ``--work`` are not repeated. The
exit status is 1 if anything is different.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PLANNERS = (
    "ExperimentPlanner",
    "ResEncUNetPlanner",
    "nnUNetPlannerResEncM",
    "nnUNetPlannerResEncL",
    "nnUNetPlannerResEncXL",
    "nnUNetPlanner_torchres",
    "nnUNetPlannerResEncL_torchres",
    "nnUNetPlannerResEncL_torchres_sepz",
    "nnUNetPlannerResEncL_noResampling",
)
CASCADE = {"lowres_creation_threshold": 0.9, "gpu_memory_target_in_gb": 1}
CASCADE_STAGES = ("3d_lowres", "3d_cascade_fullres")
LARGEST_IMAGE_DIFFERENCE = 1e-4  # of a normalised grey value

# Run by both installations; what they need is in the JSON given as argument.
PREPARE = r"""
import json, os, sys
import numpy as np
import torch
import nnunetv2
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

def dump(file, image, seg, properties):
    rows = {'rows ' + str(tuple(map(int, label)) if isinstance(label, (tuple, list)) else int(label)):
            np.asarray(found, dtype=np.int64).reshape(-1, 4) for label, found in properties['class_locations'].items()}
    keys = ('bbox_used_for_cropping', 'shape_before_cropping', 'shape_after_cropping_and_before_resampling')
    np.savez(file, image=image[:], segmentation=seg[:], **rows, **{key: np.asarray(properties[key]) for key in keys})

def save_random_checkpoint(plans, configuration, description, features):
    plans = json.loads(json.dumps(plans))
    plans['continue_training'] = False  # which constructors of 2.8.1 need
    for each in plans['configurations'].values():
        if 'architecture' in each:
            arguments = each['architecture']['arch_kwargs']
            arguments['features_per_stage'] = [min(features * 2**i, n) for i, n in enumerate(arguments['features_per_stage'])]
    torch.manual_seed(7)
    trainer = nnUNetTrainer(plans, configuration, 0, description, torch.device('cpu'))
    trainer.initialize()
    with torch.no_grad():  # spread the logits, so that several classes win somewhere
        for parameter in trainer.network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    trainer.inference_allowed_mirroring_axes = tuple(range(len(trainer.configuration_manager.patch_size)))
    plans.pop('continue_training', None)
    for name, content in (('plans.json', plans), ('dataset.json', description)):
        json.dump(content, open(os.path.join(trainer.output_folder_base, name), 'w'))
    trainer.save_checkpoint(os.path.join(trainer.output_folder, 'checkpoint_final.pth'))
    return trainer.output_folder_base

def preprocess(case, files, manager, configuration, description):
    of = manager.get_configuration(configuration)
    folder = os.path.join(os.environ['nnUNet_preprocessed'], manager.dataset_name, of.data_identifier)
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):  # of another planner that has the same folder; 2.8.1 cannot write over it
        if name.split('.')[0] in (case, case + '_seg'):
            os.remove(os.path.join(folder, name))
    of.preprocessor_class(verbose=False).run_case_save(os.path.join(folder, case), files['images'], files['label'], manager, of, description)
    image, seg, _, properties = infer_dataset_class(folder)(folder, [case]).load_case(case)
    return image, seg, properties

def plan(name, number, settings):
    Planner = recursive_find_python_class(
        os.path.join(nnunetv2.__path__[0], 'experiment_planning'), name, current_module='nnunetv2.experiment_planning')
    settings = dict(settings)
    threshold = settings.pop('lowres_creation_threshold', None)
    planner = Planner(number, **settings)
    if threshold is not None:
        planner.lowres_creation_threshold = threshold
    planner.plan_experiment()
    return planner.plans_identifier + '.json'

def prepare(job):
    dataset, number = job['dataset'], int(job['dataset'][7:10])
    description = json.load(open(os.path.join(os.environ['nnUNet_raw'], dataset, 'dataset.json')))
    cases = get_filenames_of_train_images_and_targets(os.path.join(os.environ['nnUNet_raw'], dataset), description)
    chosen = sorted(cases)[::max(1, len(cases) // job['cases'])][:job['cases']]
    smallest_first = sorted(chosen, key=lambda case: os.path.getsize(cases[case]['images'][0]))
    DatasetFingerprintExtractor(number, num_processes=1).run()
    done = {'images': [cases[case]['images'] for case in smallest_first], 'plans': {}, 'models': {}}
    for name in job['planners']:
        done['plans'][name] = os.path.join(os.environ['nnUNet_preprocessed'], dataset, plan(name, number, job['planner settings']))
        manager = PlansManager(done['plans'][name])
        for configuration in job['configurations'] or manager.available_configurations:
            folder = os.path.join(job['out'], dataset, name, configuration)
            os.makedirs(folder, exist_ok=True)
            for case in chosen:
                dump(os.path.join(folder, case + '.npz'), *preprocess(case, cases[case], manager, configuration, description))
            if job['checkpoints']:
                done['models'][name + ' ' + configuration] = save_random_checkpoint(manager.plans, configuration, description, job['features'])
    json.dump(done, open(job['done'], 'w'))

for job in json.loads(sys.argv[1]):
    if not os.path.exists(job['done']):
        prepare(job)
"""

PREDICT = r"""
import json, os, sys
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

torch.set_num_threads(1)
for model, images, out, previous in json.loads(sys.argv[1]):
    if os.path.exists(os.path.join(out, 'done')):
        continue
    os.makedirs(out, exist_ok=True)
    predictor = nnUNetPredictor(tile_step_size=0.5, use_gaussian=True, use_mirroring=bool(int(sys.argv[2])), perform_everything_on_device=False,
                                device=torch.device('cpu'), verbose=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, use_folds=(0,), checkpoint_name='checkpoint_final.pth')
    predictor.predict_from_files_sequential(images, out, save_probabilities=True, folder_with_segs_from_prev_stage=previous)
    open(os.path.join(out, 'done'), 'w').close()
"""


class Installation:
    """One Python interpreter with folders of its own."""

    def __init__(self, name: str, python: str, raw: Path, work: Path) -> None:
        self.name, self.work = name, work / name
        # absolute(), not resolve(): the Python of a virtual environment is a link that must stay one
        self.python = str(Path(python).absolute())
        self.preprocessed = self.work / "preprocessed"
        self.environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
            "nnUNet_raw": str(raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.work / "results"),
            "nnUNet_compile": "f",
            "nnUNet_half_accumulation": "1",
        }
        for folder in (self.preprocessed, self.work / "results"):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, program: str, *arguments: object) -> None:
        """Run a program; not in the repository, where Python would import the package that lies there."""
        command = [self.python, "-c", program, *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, cwd=self.work, check=False)
        if done.returncode:
            sys.exit(f"{self.name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


class Report:
    """Prints what is compared and counts differences."""

    def __init__(self) -> None:
        self.differences = 0

    def line(self, same: bool, what: str, detail: str = "") -> None:
        self.differences += not same
        print(f"{'same' if same else 'DIFFERENT':9}  {what}  {detail}".rstrip(), flush=True)


def differences(ours: Any, reference: Any, tolerance: float, path: str = "") -> Iterator[str]:
    """Between two contents of JSON files, apart from keys that only we write."""
    if isinstance(ours, dict) and isinstance(reference, dict):
        for key, value in reference.items():
            if key in ours:
                yield from differences(ours[key], value, tolerance, f"{path}/{key}")
            else:
                yield f"{path}/{key} is missing"
    elif isinstance(ours, list) and isinstance(reference, list) and len(ours) == len(reference):
        for i, (a, b) in enumerate(zip(ours, reference, strict=True)):
            yield from differences(a, b, tolerance, f"{path}[{i}]")
    elif ours != reference and not (
        all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (ours, reference))
        and (math.isclose(ours, reference, rel_tol=tolerance, abs_tol=1e-12) or (math.isnan(ours) and math.isnan(reference)))
    ):
        yield f"{path}: {ours!r}, reference {reference!r}"


def prepare(side: Installation, job: dict[str, Any], datasets: list[str], work: Path) -> dict[str, dict]:
    """Plan, preprocess and save checkpoints; returns by dataset where they are."""
    done = {dataset: work / side.name / f"{dataset}.json" for dataset in datasets}
    jobs = [job | {"dataset": dataset, "out": str(work / side.name / "cases"), "done": str(file)} for dataset, file in done.items()]
    if not all(file.exists() for file in done.values()):
        side.run(PREPARE, json.dumps(jobs))
    return {dataset: json.loads(file.read_text()) for dataset, file in done.items()}


def predictions(work: Path, side: str, saver: str, dataset: str, model: str) -> Path:
    """Folder of what one side predicts; ``model`` is planner and configuration."""
    return work / side / "predictions" / saver / dataset / model.replace(" ", "_")


def predict(side: Installation, saver: str, prepared: dict[str, dict], images: dict[str, list], mirror: bool, work: Path) -> None:
    """Predict with all checkpoints of one saver."""
    jobs = []
    for dataset, of in prepared.items():
        for model, folder in of["models"].items():
            planner, configuration = model.split()
            first_stage = predictions(work, "reference", "reference", dataset, f"{planner} {CASCADE_STAGES[0]}")
            previous = str(first_stage) if configuration == CASCADE_STAGES[1] else None
            jobs.append((folder, images[dataset], str(predictions(work, side.name, saver, dataset, model)), previous))
    if not all(Path(out, "done").exists() for _, _, out, _ in jobs):
        side.run(PREDICT, json.dumps(jobs), int(mirror))


def compare_case(ours: Path, reference: Path) -> tuple[float, list[str]]:
    """Largest difference of the images, and everything that counts as different."""
    a, b = np.load(ours), np.load(reference)
    if sorted(a) != sorted(b):
        return np.inf, [f"{ours.stem}: {sorted(set(a) ^ set(b))} on one side only"]
    if a["image"].shape != b["image"].shape:
        return np.inf, [f"{ours.stem}: shape {a['image'].shape}, reference {b['image'].shape}"]
    worst = float(np.abs(a["image"].astype(np.float64) - b["image"].astype(np.float64)).max())
    found = [] if worst <= LARGEST_IMAGE_DIFFERENCE else [f"{ours.stem}: image differs by {worst:.3g}"]
    return worst, found + [f"{ours.stem}: {key}" for key in a if key != "image" and not np.array_equal(a[key], b[key])]


def compare_cases(report: Report, what: str, ours: Path, reference: Path) -> None:
    results = [compare_case(ours / file.name, file) for file in sorted(reference.iterdir())]
    bad = [message for _, messages in results for message in messages]
    text = "; ".join(bad[:5]) or f"largest difference {max(worst for worst, _ in results):.2g}"
    report.line(not bad, f"{what}: {len(results)} preprocessed cases", text)


def compare_predictions(report: Report, what: str, ending: str, ours: Path, reference: Path) -> None:
    """Labels and probabilities of the same cases."""
    import SimpleITK as sitk

    names = [sorted(path.name for path in folder.glob(f"*{ending}")) for folder in (ours, reference)]
    report.line(names[0] == names[1] and bool(names[0]), f"{what}: files", f"{len(names[0])} and {len(names[1])}")
    for name in names[0]:
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))) for folder in (ours, reference))
        key = name[: -len(ending)] + ".npz"
        p, q = (np.load(folder / key)["probabilities"].astype(np.float32) for folder in (ours, reference))
        agree, gap = float((a == b).mean()), np.abs(p - q).max(axis=0)
        close = float((gap <= 1e-3).mean())
        report.line(
            agree >= 0.9999 and close >= 0.9999 and gap.max() <= 0.05,
            f"{what}: {name}",
            f"labels equal {agree:.6f} of {np.unique(b).tolist()}, probabilities within 1e-3 {close:.6f}, largest {gap.max():.2g}",
        )


def compare_dataset(report: Report, dataset: str, sides: list[tuple[Installation, dict]], work: Path) -> None:
    """Everything of one dataset; ``sides`` are ours and the reference with what they prepared."""
    folders = [side.preprocessed / dataset for side, _ in sides]
    ending = json.loads((folders[1] / "dataset.json").read_text())["file_ending"]
    contents = [json.loads((folder / "dataset_fingerprint.json").read_text()) for folder in folders]
    found = list(differences(*contents, 1e-6))
    report.line(not found, "fingerprint", "; ".join(found[:5]))
    for planner in sides[1][1]["plans"]:
        files = [Path(of["plans"][planner]) for _, of in sides]
        report.line(files[0].name == files[1].name, f"{planner}: name of the plans", files[1].name)
        plans = [json.loads(file.read_text()) for file in files]
        found = list(differences(*plans, 1e-9))
        report.line(not found, f"{planner}: plans", "; ".join(found[:5]) or ", ".join(plans[1]["configurations"]))
        ours, reference = (work / name / "cases" / dataset / planner for name in ("ours", "reference"))
        for folder in sorted(reference.iterdir()):
            compare_cases(report, f"{planner}: {folder.name}", ours / folder.name, folder)
    for model in sides[1][1]["models"]:
        for saver in ("reference", "ours"):
            both = [predictions(work, side.name, saver, dataset, model) for side, _ in sides]
            compare_predictions(report, f"{model}: predictions of a checkpoint saved by {saver}", ending, *both)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default=sys.executable)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--raw", required=True, type=Path)
    parser.add_argument("--dataset", required=True, type=int, nargs="+")
    parser.add_argument("--planners", nargs="+", default=None, help="default: all, or ExperimentPlanner with --cascade")
    parser.add_argument("--configurations", nargs="+", default=None, help="default: all of the plans, or the stages of the cascade")
    parser.add_argument("--cascade", action="store_true")
    parser.add_argument("--cases", type=int, default=5, help="to preprocess, spread over the dataset (default: %(default)s)")
    parser.add_argument("--images", type=int, default=0, help="of these cases to predict (default: %(default)s)")
    parser.add_argument("--features", type=int, default=8, help="of the first stage of the network that predicts (default: %(default)s)")
    parser.add_argument("--mirror", action="store_true", help="predict with test-time augmentation")
    parser.add_argument("--work", type=Path, default=None, help="folder for all outputs (default: a temporary one)")
    args = parser.parse_args(argv)
    planners = list(args.planners or (PLANNERS[:1] if args.cascade else PLANNERS))
    work = (args.work or Path(tempfile.mkdtemp(prefix="stages-"))).absolute()
    names = [path.name for path in sorted(args.raw.iterdir())]
    datasets = [name for number in args.dataset for name in names if name.startswith(f"Dataset{number:03d}_")]
    ours, reference = (
        Installation(name, python, args.raw.absolute(), work) for name, python in (("ours", args.ours), ("reference", args.reference))
    )
    job = {
        "planners": planners,
        "planner settings": CASCADE if args.cascade else {},
        "configurations": args.configurations or (CASCADE_STAGES if args.cascade else None),
        "cases": args.cases,
        "checkpoints": args.images > 0,
        "features": args.features,
    }
    prepared = {side.name: prepare(side, job, datasets, work) for side in (reference, ours)}
    images = {dataset: of["images"][: args.images] for dataset, of in prepared["reference"].items()}
    if args.images:
        for side, saver in ((reference, "reference"), (ours, "reference"), (ours, "ours"), (reference, "ours")):
            predict(side, saver, prepared[saver], images, args.mirror, work)

    report = Report()
    for dataset in datasets:
        print(dataset)
        compare_dataset(report, dataset, [(side, prepared[side.name][dataset]) for side in (ours, reference)], work)
    print(f"\n{report.differences} difference(s)")
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())

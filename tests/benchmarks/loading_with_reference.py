#!/usr/bin/env python3
"""Batches per second of loading and augmentation, against the published nnunetv2 on the same raw images, in alternating runs.

    python -m venv reference-env && reference-env/bin/pip install nnunetv2==2.8.1
    python tests/benchmarks/loading_with_reference.py --reference reference-env/bin/python

The images are made up: smooth structures with noise, four labels. Both sides load patches of 64^3 and of 128^3 voxels, two per batch, with two
workers, from copies of the same preprocessed files (ours), through ``nnUNetTrainer.get_dataloaders``. Each measurement is a process of its own.
Wall time needs a machine with nothing else to do; the CPU time of one process (``--workers 0``) is less sensitive to others.
"""

from __future__ import annotations

import itertools
import shutil

from alternating import Comparison, Figures, Side, argument_parser
from compare_with_reference import TRAINER
from synthetic_dataset import plan_unet, write_dataset

BATCH_SIZE = 2
LOAD = (
    """
import os, sys
import numpy as np
os.environ['nnUNet_n_proc_DA'] = sys.argv[3]
"""
    + TRAINER
    + """
torch.set_num_threads(1)
trainer = build('nnUNetTrainer')
warm_up, batches = int(sys.argv[4]), int(sys.argv[5])
np.random.seed(int(sys.argv[6]))
torch.manual_seed(int(sys.argv[6]))
trainer.seed = int(sys.argv[6])
train, val = trainer.get_dataloaders()
for _ in range(warm_up):
    next(train)
start, cpu = time.perf_counter(), time.process_time()
for _ in range(batches):
    next(train)
report(time=(time.perf_counter() - start) / batches, cpu=(time.process_time() - cpu) / batches)
os._exit(0)
"""
)


def main() -> None:
    """Measure every patch size and number of channels."""
    parser = argument_parser(__doc__, ("64", "128"))
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seed", type=int, default=0, help="of the first run's augmentation; each further run has the next one")
    parser.add_argument("--workers", type=int, default=2, help="0: CPU time of one process")
    parser.add_argument("--batches", type=int, default=40, help="per measurement")
    parser.add_argument("--image_size", type=int, default=192)
    args = parser.parse_args()
    comparison = Comparison(args)
    for channels in args.channels:
        number = 900 + channels
        dataset = f"Dataset{number}_Loading"
        write_dataset(comparison.raw / dataset, 5, (args.image_size,) * 3, channels=channels)
        ours, theirs = (side.folder("preprocessed", dataset) for side in comparison.sides)
        if not (ours / "nnUNetPlans_3d_fullres").is_dir():
            comparison.ours.run(comparison.ours.command("nnUNetv2_plan_and_preprocess"), "-d", number, "-c", "3d_fullres", "-np", 2)
        if not theirs.is_dir():
            shutil.copytree(ours, theirs)
        for patch in args.only:
            for side in comparison.sides:
                # a shallow network costs nothing to build
                plan_unet(side.folder("preprocessed", dataset), int(patch), features=[4] * 5, convolutions=1)

            seeds = {side.name: itertools.count(args.seed) for side in comparison.sides}

            def load(side: Side, dataset: str = dataset, seeds: dict = seeds) -> Figures:
                warm_up, seed = 8 if args.workers else 2, next(seeds[side.name])
                return side.script(LOAD, side.folder("preprocessed", dataset), "3d_fullres", args.workers, warm_up, args.batches, seed)

            workers = f"{args.workers} workers" if args.workers else "one process"
            what = f"loader, batches of {BATCH_SIZE} of {patch}^3, channels: {channels}, {workers}"
            comparison.measure("T6", what, load, ("time" if args.workers else "cpu",))


if __name__ == "__main__":
    main()

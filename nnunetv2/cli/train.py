"""Entry point of ``nnUNetv2_train``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from nnunetv2.cli.arguments import fold, positive_number, run_command


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_train``."""
    parser = argparse.ArgumentParser(description="Train one fold of one configuration, then predict and score its validation cases.")
    parser.add_argument("dataset_name_or_id", help="name or id of a preprocessed dataset")
    parser.add_argument(
        "configuration", help="configuration of the plans: 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres or one of your own"
    )
    parser.add_argument("fold", type=fold, help="fold of the cross-validation, 0 to 4, or all to train on every case")
    parser.add_argument(
        "-tr",
        default="nnUNetTrainer",
        metavar="TRAINER",
        help="trainer, a class name; nnUNetTrainerMultitask trains case-level classes too (default: %(default)s)",
    )
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="name of the plans (default: %(default)s)")
    parser.add_argument("-pretrained_weights", default=None, metavar="CHECKPOINT", help="checkpoint whose weights the training starts from")
    parser.add_argument(
        "-prev_stage_tr", default=None, metavar="TRAINER", help="trainer whose first stage a cascade is trained on (default: that of -tr)"
    )
    parser.add_argument(
        "-num_gpus",
        type=int,
        default=1,
        metavar="N",
        help="number of GPUs, or of processes with -device cpu; see documentation/multi_gpu.md (default: %(default)s)",
    )
    parser.add_argument("--npz", action="store_true", help="keep the probabilities of the validation cases, to find the best ensemble")
    parser.add_argument("--c", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--val", action="store_true", help="validate a finished training again, do not train")
    parser.add_argument(
        "--val_best", action="store_true", help="validate checkpoint_best instead of checkpoint_final, into the same folder"
    )
    parser.add_argument(
        "-val_chk",
        nargs="+",
        default=(),
        metavar="CHECKPOINT",
        help="also validate these, such as checkpoint_best_classification.pth, each into a folder validation_NAME of its own, for "
        "nnUNetv2_find_best_configuration to choose from; with --val nothing else",
    )
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints")
    parser.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default=None,
        help="where to train; CUDA_VISIBLE_DEVICES chooses a GPU (default: cuda, or cpu where there is none)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        metavar="N",
        help="makes the training repeatable, on the CPU exactly (default: a random one, written to the log)",
    )
    parser.add_argument(
        "--epochs", type=positive_number, default=None, metavar="N", help="number of epochs (default: that of the trainer, 1000)"
    )
    parser.add_argument(
        "--iterations_per_epoch",
        type=positive_number,
        default=None,
        metavar="N",
        help="training steps per epoch; a fifth as many validate (default: that of the trainer, 250)",
    )
    parser.add_argument(
        "--head_refit",
        choices=("cases", "patches", "none"),
        default=None,
        help="how new classification heads are trained on the finished encoder (default: that of the trainer, cases)",
    )
    parser.add_argument(
        "--refit_heads",
        action="store_true",
        help="only refit the heads: of this finished training, or of the network of any other one, given with -pretrained_weights",
    )
    return parser


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options and train."""
    args = build_parser().parse_args(argv)
    if args.c and args.val:
        raise ValueError("--c and --val exclude each other: one continues the training, the other skips it.")

    import torch

    from nnunetv2.run.run_training import run_training

    is_first = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun
    device = args.device
    if device is None:
        # Whoever asks for several GPUs is told that there are none.
        device = "cuda" if torch.cuda.is_available() or args.num_gpus > 1 else "cpu"
        if device == "cpu" and is_first:
            print(
                "No CUDA device found: training on the CPU, which is slow for anything but small data. -device chooses another one.",
                flush=True,
            )
    if args.p == "nnUNetPlans" and is_first:
        print("Note: the residual encoder presets are nnU-Net's recommended plans, for example -p nnUNetResEncUNetLPlans.", flush=True)
    run_training(
        args.dataset_name_or_id,
        args.configuration,
        args.fold,
        args.tr,
        args.p,
        args.pretrained_weights,
        args.num_gpus,
        args.npz,
        args.c,
        args.val,
        args.disable_checkpointing,
        args.val_best,
        device=torch.device(device),
        seed=args.seed,
        num_epochs=args.epochs,
        num_iterations_per_epoch=args.iterations_per_epoch,
        head_refit=args.head_refit,
        only_refit_heads=args.refit_heads,
        previous_stage_trainer=args.prev_stage_tr,
        further_validated_checkpoints=args.val_chk,
    )


if __name__ == "__main__":
    main()

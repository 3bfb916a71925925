"""What all commands share: how errors are shown, and the options that several of them have.

Nothing heavy is imported here, so that ``--help`` and a misspelled option answer at once.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence

# What a mistake of the user raises. Anything else is a fault of the program and keeps its traceback.
EXPECTED_ERRORS = (ValueError, RuntimeError, OSError, ImportError, AssertionError)
DEBUG_VARIABLE = "nnUNet_debug"
TRUE_VALUES = ("1", "true", "t", "yes")
MULTITASK_TRAINER, DEFAULT_PLANS = "nnUNetTrainerMultitask", "nnUNetPlans"
INTERRUPTED_EXIT_STATUS = 130  # what shells report for a program stopped with Ctrl+C

Command = Callable[..., None]


def run_command(main: Command) -> Command:
    """Decorator of a command: an expected error becomes a message on stderr, the last thing to be seen, and exit status 1.

    Warnings are shown as text alone, without the line of code that they come from. With ``--verbose`` among the arguments, or the
    environment variable ``nnUNet_debug=1``, the traceback is shown instead.

        @run_command
        def main(argv: Sequence[str] | None = None) -> None:
            args = build_parser().parse_args(argv)
            ...

    Args:
        main: The command; takes the arguments without the program's name, None for those of the process.

    Returns:
        The command with the same signature.
    """

    @functools.wraps(main)
    def command(argv: Sequence[str] | None = None) -> None:
        previous_format, warnings.formatwarning = warnings.formatwarning, plain_warning
        try:
            main(argv)
        except KeyboardInterrupt:
            if traceback_wanted(argv):
                raise
            print("Interrupted.", file=sys.stderr)
            sys.exit(INTERRUPTED_EXIT_STATUS)
        except EXPECTED_ERRORS as error:
            if traceback_wanted(argv) or not str(error):
                raise
            print(f"\nStopped ({DEBUG_VARIABLE}=1 in the environment shows where).\nError: {error_text(error)}", file=sys.stderr)
            sys.exit(1)
        finally:
            warnings.formatwarning = previous_format

    return command


def traceback_wanted(argv: Sequence[str] | None) -> bool:
    """Whether the user asked for the place where an error was raised."""
    arguments = sys.argv[1:] if argv is None else argv
    return "--verbose" in arguments or os.environ.get(DEBUG_VARIABLE, "").lower() in TRUE_VALUES


def error_text(error: Exception) -> str:
    """The message of an error; those of the operating system in words, with the file."""
    if not isinstance(error, OSError) or error.strerror is None or type(error).__str__ is not OSError.__str__:
        return str(error)
    file = error.filename2 or error.filename
    return f"{os.fsdecode(file)}: {error.strerror}" if isinstance(file, (str, bytes, os.PathLike)) else error.strerror


def plain_warning(message: Warning | str, *_: object) -> str:
    """A warning as a person reads it, for ``warnings.formatwarning``."""
    return f"WARNING: {message}\n"


def fold(text: str) -> int | str:
    """``all`` or a number, as argparse type."""
    if text == "all":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no fold; expected 0 or a higher whole number, or 'all'")
    return int(text)


def positive_number(text: str) -> int:
    """A whole number of at least 1, as argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def dataset_id_or_name(text: str) -> int | str:
    """``4``, ``004`` or ``Dataset004_Name``, as argparse type."""
    if text.startswith("Dataset"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a dataset id (4) nor a dataset name (Dataset004_Name)") from None


def number_of_processes(text: str) -> int:
    """A whole number of worker processes; 0 and 1 both mean: in this process."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} processes are not possible, give 0 or more")
    return number


def add_dataset_ids(parser: argparse.ArgumentParser) -> None:
    """``-d``: one or more datasets."""
    parser.add_argument(
        "-d", nargs="+", type=dataset_id_or_name, required=True, metavar="DATASET", help="dataset ids (4) or names (Dataset004_Name)"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """``-m``, or ``-d``, ``-c``, ``-tr`` and ``-p``: one trained model with classification heads."""
    parser.add_argument("-m", default=None, metavar="FOLDER", help="folder of the model; or give -d, -c, -tr and -p")
    parser.add_argument("-d", type=dataset_id_or_name, default=None, metavar="DATASET", help="dataset of the model, id or name")
    parser.add_argument("-c", default=None, metavar="CONFIGURATION", help="configuration of the model, such as 3d_fullres")
    parser.add_argument("-tr", default=None, metavar="TRAINER", help=f"trainer of the model (default: {MULTITASK_TRAINER})")
    parser.add_argument("-p", default=None, metavar="PLANS", help=f"plans of the model (default: {DEFAULT_PLANS})")


def check_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a message unless :func:`add_model`'s options name the model in exactly one way."""
    if args.m is None and (args.d is None or args.c is None):
        parser.error("give the model either by its folder, -m, or by -d and -c")
    given = [option for option, value in {"-d": args.d, "-c": args.c, "-tr": args.tr, "-p": args.p}.items() if value is not None]
    if args.m is not None and given:
        parser.error(f"give the model either by its folder, -m, or by -d and -c: -m names it already; leave out {', '.join(given)}")


def model_folder(args: argparse.Namespace) -> str:
    """The folder that :func:`add_model`'s options name."""
    if args.m is not None:
        return args.m
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    return get_output_folder(args.d, args.tr or MULTITASK_TRAINER, args.p or DEFAULT_PLANS, args.c)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """``-np``: worker processes, as many as ``nnUNet_def_n_proc`` says."""
    from nnunetv2.configuration import default_num_processes  # read on use: a wrong value is a message, not a traceback

    parser.add_argument(
        "-np", type=number_of_processes, default=default_num_processes, metavar="N", help="worker processes (default: %(default)s)"
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """``--verbose``: say more, and show tracebacks."""
    parser.add_argument("--verbose", action="store_true", help="say more while working, and show the traceback of an error")


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    """``--scheduler``: this machine, or a Dask cluster."""
    parser.add_argument(
        "--scheduler",
        default="local",
        metavar="ADDRESS",
        help="address of a Dask scheduler (tcp://host:8786) or its scheduler file, whose workers do the cases; see documentation/clusters.md "
        "(default: local, this machine)",
    )


def add_no_progress_bar(parser: argparse.ArgumentParser) -> None:
    """``--no_pbar``: for log files."""
    parser.add_argument("--no_pbar", action="store_true", help="draw no progress bars, for log files")

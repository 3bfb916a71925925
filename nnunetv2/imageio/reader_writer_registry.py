"""Which reader/writer handles the files of a dataset."""

from __future__ import annotations

import os
import traceback

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

# In order of preference. SimpleITKIOWithReorient is used by name only.
LIST_OF_IO_CLASSES: list[type[BaseReaderWriter]] = [NaturalImage2DIO, SimpleITKIO, Tiff3DIO, NibabelIO, NibabelIOWithReorient]


def determine_reader_writer_from_dataset_json(
    dataset_json_content: dict,
    example_file: str | None = None,
    allow_nonmatching_filename: bool = False,
    verbose: bool = True,
) -> type[BaseReaderWriter]:
    """The reader/writer that dataset.json names in ``overwrite_image_reader_writer``, else the first that fits its files.

    Args:
        dataset_json_content: Content of dataset.json.
        example_file: An image file of the dataset. With it, a reader is chosen only if it can read this file.
        allow_nonmatching_filename: Whether readers that do not list the file ending may be tried on the example file.
        verbose: Whether to print the choice.

    Raises:
        RuntimeError: If no reader fits.
    """
    requested = dataset_json_content.get("overwrite_image_reader_writer")
    if requested is not None and requested != "None":
        reader = _find_by_name(requested)
        if reader is not None:
            if verbose:
                print(f"Using {requested} as reader/writer, as dataset.json demands.")
            return reader
        print(
            f"WARNING: dataset.json asks for the reader/writer {requested}, but there is no such class in nnunetv2.imageio. "
            "Choosing one by the file ending instead."
        )
    return determine_reader_writer_from_file_ending(dataset_json_content["file_ending"], example_file, allow_nonmatching_filename, verbose)


def determine_reader_writer_from_file_ending(
    file_ending: str, example_file: str | None = None, allow_nonmatching_filename: bool = False, verbose: bool = True
) -> type[BaseReaderWriter]:
    """The first reader/writer that lists the file ending and, if an example file is given, can read it.

    Arguments and errors are those of :func:`determine_reader_writer_from_dataset_json`.
    """
    failures = []
    for reader in LIST_OF_IO_CLASSES:
        matches = file_ending.lower() in reader.supported_file_endings
        if matches and example_file is None:
            if verbose:
                print(f"Using {reader.__name__} as reader/writer.")
            return reader
        if example_file is None or not (matches or allow_nonmatching_filename):
            continue
        try:
            reader().read_images((example_file,))
        except Exception as error:
            failures.append(f"  {reader.__name__}: {error}")
            if verbose:
                print(f"{reader.__name__} cannot read {os.fspath(example_file)}; trying other readers.")
                traceback.print_exc()
            continue
        if verbose:
            print(f"Using {reader.__name__} as reader/writer.")
        return reader
    supported = ", ".join(sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}))
    tried = "\nReaders that were tried on the example file:\n" + "\n".join(failures) if failures else ""
    raise RuntimeError(
        f"No reader/writer for files ending in {file_ending}" + (f", such as {os.fspath(example_file)}" if example_file else "") + ". "
        f"Supported endings: {supported}. Convert the files or name another class of nnunetv2.imageio in dataset.json "
        f"('overwrite_image_reader_writer').{tried}"
    )


def recursive_find_reader_writer_by_name(rw_class_name: str) -> type[BaseReaderWriter]:
    """The class of that name in a module of ``nnunetv2.imageio``.

    Raises:
        RuntimeError: If there is none.
    """
    reader = _find_by_name(rw_class_name)
    if reader is None:
        raise RuntimeError(
            f"There is no reader/writer named {rw_class_name} in {os.path.dirname(__file__)}. "
            "A custom reader/writer must be saved in a file in that folder."
        )
    return reader


def _find_by_name(name: str) -> type[BaseReaderWriter] | None:
    return recursive_find_python_class(os.path.dirname(__file__), name, "nnunetv2.imageio")

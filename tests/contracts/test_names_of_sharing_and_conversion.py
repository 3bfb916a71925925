"""Names of nnunetv2 2.8.1 that other people's code imports: they take the same arguments, in the same order."""

from __future__ import annotations

import importlib
import inspect

import pytest

NAMES = {
    "dataset_conversion.convert_MSD_dataset": {
        "split_4d_nifti": ("filename", "output_folder"),
        "convert_msd_dataset": ("source_folder", "overwrite_target_id", "num_processes"),
        "entry_point": (),
    },
    "dataset_conversion.convert_raw_dataset_from_old_nnunet_format": {
        "convert": ("source_folder", "target_dataset_name"),
        "convert_entry_point": (),
    },
    "model_sharing.entry_points": {
        "print_license_warning": (),
        "download_by_url": (),
        "install_from_zip_entry_point": (),
        "export_pretrained_model_entry": (),
    },
    "model_sharing.model_download": {
        "download_and_install_from_url": ("url",),
        "download_file": ("url", "local_filename", "chunk_size"),
    },
    "model_sharing.model_export": {
        "export_pretrained_model": (
            "dataset_name_or_id", "output_file", "configurations", "trainer", "plans_identifier", "folds", "strict", "save_checkpoints",
            "export_crossval_predictions",
        ),
    },
    "model_sharing.model_import": {"install_model_from_zip_file": ("zip_file",)},
    "run.load_pretrained_weights": {"load_pretrained_weights": ("network", "fname", "verbose")},
    "utilities.overlay_plots": {
        "hex_to_rgb": ("hex",),
        "generate_overlay": ("input_image", "segmentation", "mapping", "color_cycle", "overlay_intensity"),
        "select_slice_to_plot": ("image", "segmentation"),
        "select_slice_to_plot2": ("image", "segmentation"),
        "plot_overlay": ("image_file", "segmentation_file", "image_reader_writer", "output_file", "overlay_intensity"),
        "plot_overlay_preprocessed": ("dataset", "k", "output_folder", "overlay_intensity", "channel_idx"),
        "multiprocessing_plot_overlay": (
            "list_of_image_files", "list_of_seg_files", "image_reader_writer", "list_of_output_files", "overlay_intensity", "num_processes",
        ),
        "multiprocessing_plot_overlay_preprocessed": ("dataset", "output_folder", "overlay_intensity", "num_processes", "channel_idx"),
        "generate_overlays_from_raw": ("dataset_name_or_id", "output_folder", "num_processes", "channel_idx", "overlay_intensity"),
        "generate_overlays_from_preprocessed": (
            "dataset_name_or_id", "output_folder", "num_processes", "channel_idx", "configuration", "plans_identifier", "overlay_intensity",
        ),
        "entry_point_generate_overlay": (),
    },
}  # fmt: skip


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_a_function_takes_the_arguments_of_nnunet(module: str, name: str) -> None:
    parameters = inspect.signature(getattr(importlib.import_module(f"nnunetv2.{module}"), name)).parameters.values()
    expected = NAMES[module][name]
    assert tuple(parameter.name for parameter in parameters)[: len(expected)] == expected
    assert all(parameter.default is not parameter.empty for parameter in list(parameters)[len(expected) :])


def test_a_name_that_overlay_plots_lacks_is_an_attribute_error() -> None:
    module = importlib.import_module("nnunetv2.utilities.overlay_plots")
    assert len(module.color_cycle) == 15
    assert not hasattr(module, "nothing_of_this_name")

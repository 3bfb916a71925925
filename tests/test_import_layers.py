"""Imports point down the layers, and commands print their help without loading what only the work needs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh_python import loaded_by

import nnunetv2

PACKAGE = Path(nnunetv2.__file__).parent
PYPROJECT = PACKAGE.parent / "pyproject.toml"

# From the highest layer to the lowest; a module imports only from lower ones and from its own folder.
LAYERS = (
    ("cli", "demo"),
    ("run", "model_selection", "report", "benchmark"),
    ("training", "ensembling", "postprocessing", "model_sharing", "dataset_conversion"),
    ("inference", "evaluation", "experiment_planning"),
    ("preprocessing", "network_architecture"),
    ("imageio", "scheduling"),
    ("utilities",),
    ("paths", "configuration"),
)
HEIGHT = {name: height for height, names in enumerate(reversed(LAYERS)) for name in names}

# Forwarders: names that nnU-Net has lower than where the code is. Each imports on use. File -> what it may import from above.
FORWARDERS = {
    "configuration.py": "nnunetv2.utilities.default_n_proc_DA",
    "cli/demo.py": "nnunetv2.demo",
    "dataset_conversion/convert_MSD_dataset.py": "nnunetv2.cli.convert_dataset",
    "dataset_conversion/convert_raw_dataset_from_old_nnunet_format.py": "nnunetv2.cli.convert_dataset",
    "ensembling/ensemble.py": "nnunetv2.cli.ensemble",
    "evaluation/evaluate_predictions.py": "nnunetv2.cli.evaluate",
    "evaluation/find_best_configuration.py": "nnunetv2.model_selection",
    "experiment_planning/plan_and_preprocess_entrypoints.py": "nnunetv2.cli",
    "experiment_planning/plans_for_pretraining/move_plans_between_datasets.py": "nnunetv2.cli.plan_and_preprocess",
    "inference/predict_from_raw_data.py": "nnunetv2.cli.predict",
    "model_selection/find_best_configuration.py": "nnunetv2.cli.find_best_configuration",
    "model_sharing/entry_points.py": "nnunetv2.cli.model_sharing",
    "postprocessing/remove_connected_components.py": "nnunetv2.cli.postprocessing",
    "run/run_training.py": "nnunetv2.cli.train",
    "utilities/overlay_plots.py": ("nnunetv2.cli.plot_overlay_pngs", "nnunetv2.report.overlay_plots"),
}

# Modules that worker processes of planning and preprocessing load, and commands before they know what to do: no torch on import.
WITHOUT_TORCH = (
    "paths",
    "configuration",
    "scheduling",
    "cli",
    "imageio",
    "evaluation",
    "experiment_planning",
    "utilities/label_handling",
    "utilities/plans_handling",
    "utilities/find_class_by_name",
    "utilities/find_objects",
    "utilities/dataset_name_id_conversion",
    "utilities/file_path_utilities",
    "utilities/crossval_split",
    "utilities/json_export",
    "utilities/file_io",
    "utilities/default_n_proc_DA",
    "utilities/utils",
    "preprocessing/cropping",
    "preprocessing/normalization",
    "preprocessing/resampling/default_resampling",
    "preprocessing/preprocessors",
    "training/dataloading/nnunet_dataset",
)


def imported_modules(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, full module name and whether it runs only when called, of every import of this package in a file.

    Imports below ``if TYPE_CHECKING`` never run and are left out.
    """
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), False)]
    while pending:
        node, is_deferred = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend((child, is_deferred) for child in node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, is_deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folders = path.relative_to(PACKAGE.parent).parts[:-1]
            base = ".".join(folders[: len(folders) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{module}.{alias.name}", is_deferred) for alias in node.names)
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        pending.extend((child, is_deferred or is_function) for child in ast.iter_child_nodes(node))


def files() -> list[str]:
    """All modules, relative to the package."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def points_down(file: str, module: str) -> bool:
    """Whether an import goes to a lower layer or stays within its folder, or is no import of this package."""
    if not module.startswith("nnunetv2."):
        return True
    source, target = file.split("/")[0].removesuffix(".py"), module.split(".")[1]
    if source == target or target.startswith("__"):
        return True
    return source in HEIGHT and target in HEIGHT and HEIGHT[target] < HEIGHT[source]


def test_every_folder_has_a_layer() -> None:
    found = {file.split("/")[0].removesuffix(".py") for file in files()} - {"__init__"}
    assert found <= set(HEIGHT), f"add to LAYERS: {sorted(found - set(HEIGHT))}"


def test_imports_point_down() -> None:
    wrong = []
    for file in files():
        for line, module, _ in imported_modules(PACKAGE / file):
            allowed = FORWARDERS.get(file, ())
            allowed = (allowed,) if isinstance(allowed, str) else allowed
            is_forward = any(module == name or module.startswith(f"{name}.") for name in allowed)
            if not points_down(file, module) and not is_forward:
                wrong.append(f"nnunetv2/{file}:{line} imports {module}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_forwarders_import_on_use_and_the_list_holds_no_others() -> None:
    unused = set(FORWARDERS)
    for file in FORWARDERS:
        for line, module, is_deferred in imported_modules(PACKAGE / file):
            if not points_down(file, module):
                assert is_deferred, f"nnunetv2/{file}:{line} imports {module} on import; do so in the function"
                unused.discard(file)
    assert not unused, f"these import nothing from above, remove them from FORWARDERS: {sorted(unused)}"


def test_the_check_itself_sees_nested_relative_and_plain_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "nnunetv2" / "imageio"
    folder.mkdir(parents=True)
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nnunetv2.cli import train\n"
        "def f():\n    import nnunetv2.run.run_training\n    from ..inference import a\n"
        "class C:\n    from nnunetv2 import demo\n"
    )
    (folder / "x.py").write_text(source)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "nnunetv2")
    found = {(module, is_deferred) for _, module, is_deferred in imported_modules(folder / "x.py") if module.startswith("nnunetv2")}
    assert found == {("nnunetv2.run.run_training", True), ("nnunetv2.inference.a", True), ("nnunetv2.demo", False)}
    assert not any(points_down("imageio/x.py", module) for module, _ in found)
    assert points_down("imageio/x.py", "nnunetv2.utilities.file_io")
    assert not points_down("inference/x.py", "nnunetv2.evaluation.evaluate_predictions")


def test_nothing_is_imported_by_a_star() -> None:
    stars = [f"nnunetv2/{file}:{line}" for file in files() for line, module, _ in imported_modules(PACKAGE / file) if module.endswith(".*")]
    assert not stars


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that has imported nothing yet."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)


def test_planning_and_preprocessing_modules_do_not_load_torch() -> None:
    modules = [
        f"nnunetv2/{file}".removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for file in files()
        if any(file.removesuffix(".py") == name or file.startswith(f"{name}/") for name in WITHOUT_TORCH)
    ]
    assert len(modules) > len(WITHOUT_TORCH) // 2
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def commands() -> dict[str, str]:
    """Entry points by command, from pyproject.toml (read as text: Python 3.10 has no parser for it)."""
    section = re.search(r"^\[project\.scripts\]\n(.*?)(?=^\[|\Z)", PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert section is not None
    return dict(re.findall(r'^(\w+)\s*=\s*"([\w.:]+)"', section[1], re.MULTILINE))


def test_the_commands_of_nnunet_are_declared() -> None:
    assert {"nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_plan_and_preprocess"} <= set(commands())


@pytest.mark.parametrize(("command", "entry_point"), sorted(commands().items()))
def test_help_of_a_command_loads_neither_torch_nor_scipy(command: str, entry_point: str) -> None:
    module, function = entry_point.split(":")
    code = (
        "import importlib, sys\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "try:\n"
        f"    importlib.import_module({module!r}).{function}()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "loaded = {'torch', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def test_prediction_does_not_load_the_compiler() -> None:
    """It takes as long as torch itself and is used where somebody asks for it."""
    assert loaded_by("import nnunetv2.inference.predict_from_raw_data", ["torch._dynamo"]) == []

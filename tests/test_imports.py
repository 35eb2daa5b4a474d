"""The arrows of docs/architecture.md: who may import whom, read from the import statements themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import medssl

PACKAGE = Path(medssl.__file__).parent


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """Dotted names that a module imports anywhere in its text, functions included."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from medssl.parts import mix` names a module, `from medssl.parts.mix import paste` does not.
            found |= (below & MODULES.keys()) or {str(node.module)}
    return found


def outside(module: str) -> set[str]:
    """Top-level names of the third-party packages that a module imports."""
    tops = {name.partition(".")[0] for name in imports_of(module)}
    return tops - sys.stdlib_module_names - {"medssl"}


def inside(module: str) -> set[str]:
    """Modules of medssl that a module imports."""
    return {name for name in imports_of(module) if name.partition(".")[0] == "medssl"}


def is_in(module: str, *places: str) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def members(*places: str) -> list[str]:
    found = [module for module in MODULES if is_in(module, *places)]
    assert found, f"no module in {places}"
    return found


def strangers(module: str, *places: str) -> list[str]:
    """What a module imports of medssl from anywhere else than `places`."""
    return sorted(name for name in inside(module) if not is_in(name, *places))


@pytest.mark.parametrize("module", members("medssl.parts"))
def test_parts_know_tensors_and_each_other_only(module):
    assert outside(module) <= {"torch", "numpy", "scipy"}
    assert strangers(module, "medssl.parts") == []


@pytest.mark.parametrize("module", members("medssl.methods"))
def test_methods_know_parts_and_settings_but_no_networks_files_or_devices(module):
    assert outside(module) <= {"torch", "pydantic"} | ({"sam2"} if module == "medssl.methods.promptable" else set())
    assert strangers(module, "medssl.methods", "medssl.parts", "medssl.config", "medssl.errors") == []


@pytest.mark.parametrize("module", members("medssl.data"))
def test_data_knows_neither_methods_nor_jobs(module):
    known = [f"medssl.{name}" for name in ("config", "errors", "files", "machine", "progress", "words")]
    assert strangers(module, "medssl.data", *known) == []


@pytest.mark.parametrize(
    "module",
    members(
        "medssl.data",
        "medssl.metrics",
        "medssl.score_file",
        "medssl.scores",
        "medssl.statistics",
        "medssl.evaluate",
        "medssl.explain",
        "medssl.config",
    ),
)
def test_arrays_stay_arrays(module):
    if module != "medssl.data.patches":
        assert "torch" not in outside(module)


@pytest.mark.parametrize("module", members("medssl.errors", "medssl.files", "medssl.config"))
def test_the_lowest_modules_import_only_each_other(module):
    assert strangers(module, "medssl.errors", "medssl.files") == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("monai", {"medssl.networks", "medssl.windows"}),
        ("nibabel", {"medssl.data.io", "medssl.data.nifti", "medssl.data.volume"}),
        ("SimpleITK", {"medssl.data.itk", "medssl.data.dicom"}),
        ("typer", {"medssl.cli"}),
        ("tensorboard", {"medssl.boards"}),
        ("mlflow", {"medssl.boards"}),
        ("wandb", {"medssl.boards"}),
        ("sam2", {"medssl.methods.promptable"}),
        ("h5py", {"medssl.data.hdf5"}),
        ("matplotlib", {"medssl.boards", "medssl.overlay", "medssl.plots"}),
    ],
)
def test_a_library_has_few_doors(package, allowed):
    users = {module for module in MODULES if package in outside(module)}
    assert users, f"nobody imports {package}: drop it from this test and from pyproject.toml"
    assert users <= allowed


def test_only_the_entry_point_imports_the_command_line():
    assert {module for module in MODULES if "medssl.cli" in inside(module)} <= {"medssl.__main__"}


def test_no_arrow_turns_back():
    TopologicalSorter({module: inside(module) - {module} for module in MODULES}).prepare()  # raises on a cycle


def loaded_after(code: str, *watched: str) -> set[str]:
    """Which of the watched packages are loaded in a fresh Python after some code has run."""
    report = f"import sys; sys.stderr.write('loaded:' + ','.join(set(sys.modules) & set({watched!r})))"
    script = f"import atexit\natexit.register(lambda: exec({report!r}))\n{code}\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    _, mark, names = done.stderr.rpartition("loaded:")
    assert mark, done.stderr
    return set(names.split(",")) - {""}


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_asking_the_command_about_itself_loads_nothing_heavy(flag):
    code = f"import sys; sys.argv = ['medssl', {flag!r}]; from medssl.cli import main; main()"
    assert loaded_after(code, "torch", "monai", "numpy", "scipy", "matplotlib", "nibabel") == set()


def test_data_and_evaluation_load_without_torch():
    modules = members(
        "medssl.data", "medssl.metrics", "medssl.scores", "medssl.score_file", "medssl.evaluate", "medssl.explain"
    )
    modules.remove("medssl.data.patches")
    assert loaded_after(f"import {', '.join(modules)}", "torch", "monai") == set()


def test_numbers_and_thumbnails_load_without_matplotlib():
    assert loaded_after("import medssl.comparison, medssl.thumbnails", "matplotlib") == set()

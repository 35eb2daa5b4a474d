"""What surrounds the package says the same as the package: dependencies, images, make targets, the README."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import medssl
from medssl import errors

ROOT = Path(__file__).parents[1]
DOCKERFILES = ["docker/Dockerfile", "docker/Dockerfile.cpu"]
COMMANDS = {"check", "plan", "prepare", "split", "train", "predict", "evaluate", "export", "report", "demo", "doctor"}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))["project"]


def requirements() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    return [Requirement(line) for line in [*project()["dependencies"], *(line for extra in extras for line in extra)]]


def pins() -> dict[str, Version]:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    return {canonicalize_name(name): Version(version) for name, version in found.items()}


def instructions(path: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions and their arguments, comments dropped and continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", read(path), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest.split())) for word, rest in lines]


def arguments(path: str, word: str) -> list[str]:
    return [rest for instruction, rest in instructions(path) if instruction == word]


# Dependencies


def test_torch_leaves_out_the_release_with_slow_3d_convolutions():
    (torch,) = [dependency for dependency in project()["dependencies"] if dependency.startswith("torch")]
    assert torch == "torch>=2.8,!=2.9.*"
    assert pins()["torch"] == Version("2.13.0")


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_to_a_version_it_allows(requirement):
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_the_wheel_carries_the_configs():
    build = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"] == {"configs": "medssl/configs"}
    assert list(ROOT.glob("configs/data/*.yaml"))
    assert list(ROOT.glob("configs/method/*.yaml"))


def test_the_version_is_the_same_everywhere():
    assert re.search(rf"^## \[{re.escape(medssl.__version__)}\]", read("CHANGELOG.md"), flags=re.MULTILINE)
    for path in DOCKERFILES:
        assert f"VERSION={medssl.__version__}" in arguments(path, "ARG")


# Images


@pytest.mark.parametrize("path", DOCKERFILES)
def test_an_image_runs_medssl_as_an_ordinary_user(path):
    assert arguments(path, "ENTRYPOINT") == ['["medssl"]']
    assert arguments(path, "WORKDIR")[-1] == "/workspace"
    assert arguments(path, "USER")[-1] not in ("root", "0")
    assert {"UID=1000", "GID=1000"} <= set(arguments(path, "ARG"))
    assert "medssl" in arguments(path, "HEALTHCHECK")[0]


@pytest.mark.parametrize("path", DOCKERFILES)
def test_an_image_takes_named_files_that_exist_and_may_travel(path):
    ignored = read(".dockerignore").splitlines()
    assert "*" in ignored
    sources = [source for rest in arguments(path, "COPY") for source in rest.split()[:-1]]
    assert {"medssl", "configs", "pyproject.toml", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    assert arguments(path, "ADD") == []


@pytest.mark.parametrize("path", DOCKERFILES)
def test_an_image_keeps_no_secret_and_takes_the_code_after_the_dependencies(path):
    assert not re.search(r"(?i)password|secret|token|api_?key|https?://", "\n".join(map(str, instructions(path))))
    steps = [f"{word} {rest}" for word, rest in instructions(path)]
    (dependencies,) = [n for n, step in enumerate(steps) if "pip install --constraint constraints.txt" in step]
    assert dependencies < steps.index("COPY medssl medssl")


def test_both_images_are_made_alike_from_the_same_files():
    cuda, cpu = ([step for step in instructions(path) if step[0] != "LABEL"] for path in DOCKERFILES)
    start = ("COPY", "pyproject.toml constraints.txt ./")
    assert cuda[cuda.index(start) :] == cpu[cpu.index(start) :]


def test_compose_gives_training_a_gpu_and_shared_memory():
    services = yaml.safe_load(read("docker/compose.yaml"))["services"]
    assert set(services) == {"train", "tensorboard"}
    train = services["train"]
    (device,) = train["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert train["shm_size"] == "16gb"
    assert train["network_mode"] == "none"
    assert "MEDSSL_COMMAND" in train["command"]
    assert {volume.rsplit("}:")[-1] for volume in train["volumes"]} == {"/data:ro", "/workspace"}
    assert (ROOT / "docker" / train["build"]["context"] / train["build"]["dockerfile"]).is_file()


# Make and continuous integration


@pytest.mark.parametrize("target", ["demo", "test", "lint", "clean", "help"])
def test_make_has_the_target(target):
    assert re.search(rf"^{target}:", read("Makefile"), flags=re.MULTILINE)


def test_continuous_integration_lints_then_tests_through_make():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    lines = read(".ci/run").strip().splitlines()
    assert "set -euo pipefail" in lines
    assert [line.split()[-1] for line in lines if line.startswith("make")] == ["lint", "test"]
    assert lines[-1].endswith(" test")


# README and docs


def documented_commands() -> list[list[str]]:
    """Words of every `medssl ...` line in the README's code blocks, continued lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", read("README.md"), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    calls = [re.sub(r"^(docker run .* |\.venv/bin/)medssl ", "medssl ", line) for line in lines]
    return [call.split("#")[0].split() for call in calls if call.startswith("medssl ")]


def test_readme_names_the_two_commands():
    assert re.search(r"^make demo\b", read("README.md"), flags=re.MULTILINE)
    assert re.search(r"^make test\b", read("README.md"), flags=re.MULTILINE)


def test_readme_shows_every_command_and_invents_none():
    assert {words[1] for words in documented_commands()} == COMMANDS


def test_every_option_in_the_readme_exists():
    import typer

    from medssl.cli import app

    commands = typer.main.get_command(app).commands
    assert set(commands) >= COMMANDS
    for _, name, *words in documented_commands():
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, name


def test_readme_lists_every_exit_code():
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    table = re.findall(r"^\| (\d+) \|", read("README.md"), flags=re.MULTILINE)
    assert {int(code) for code in table} == codes | {0, 1}


@pytest.mark.parametrize(
    "path",
    ["README.md", "CONTRIBUTING.md", "docs/index.md", "docs/architecture.md", "docs/methods.md", "docs/protocols.md"],
)
def test_links_between_our_pages_lead_somewhere(path):
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", read(path)) if "://" not in target]
    missing = [target for target in targets if not (ROOT / path).parent.joinpath(target).exists()]
    assert missing == []


def test_architecture_shows_the_files_that_exist():
    shown = set(re.findall(r"[a-z0-9_]+\.py", read("docs/architecture.md")))
    files = {path.name for path in (ROOT / "medssl").rglob("*.py") if path.name != "__init__.py"}
    assert files <= shown
    assert shown - files <= {"by_hand.py", "foo.py", "test_imports.py"}


def test_the_gpu_script_parses_and_names_shapes_and_benchmarks_that_exist():
    script = ROOT / "benchmarks" / "gpu.sh"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert os.access(script, os.X_OK)
    for name in re.findall(r"benchmarks/[a-z]+\.py|tests/[a-z_]+(?:\.py)?", script.read_text()):
        assert (ROOT / name).exists(), name
    shapes = set(re.findall(r'^    "([a-z-]+)": \(', read("benchmarks/step.py"), flags=re.MULTILINE))
    for line in re.findall(r"--shapes ([a-z -]+?) --", script.read_text()):
        assert set(line.split()) <= shapes

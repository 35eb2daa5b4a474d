"""What `medssl doctor` says of this machine, and of installations and folders that are not well."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import medssl
from medssl.cli import app
from medssl.device import choose_device, tell_once
from medssl.doctor import fault_behind
from medssl.driver import Driver, driver_version, find_driver, why_no_gpu, why_no_kernels
from medssl.errors import ConfigError, DeviceError


def doctor(*words):
    return CliRunner().invoke(app, ["doctor", *map(str, words)])


def doctor_beside(packages, *words):
    """In a process of its own that finds the packages of a folder before all others."""
    path = os.pathsep.join(filter(None, (str(packages), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "medssl", "doctor", *map(str, words), "--device", "cpu"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def lines_of(done, state):
    """What the lines of a state say, without it."""
    return [line.split(None, 1)[1] for line in done.stdout.splitlines() if line.split(None, 1)[0] == state]


@pytest.fixture
def packages(tmp_path):
    """A folder for packages, beside the empty one that is looked at."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages"


def install(folder, name, version, module="", text=""):
    """Leave a package as an installer does."""
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if module:
        (folder / f"{module}.py").write_text(text)


def test_a_cpu_that_is_well_has_no_fault_and_nothing_stays_in_the_folder(tmp_path):
    done = doctor(tmp_path, "--device", "cpu")
    assert done.exit_code == 0, done.stdout
    assert lines_of(done, "fault") == []
    topics = [line.split()[0] for line in lines_of(done, "ok")]
    assert topics[:4] == ["medssl", "packages", "optional", "machine"]
    assert topics[-4:] == ["cpu", "disk", "blosc2", "NIfTI"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(find_driver() is not None, reason="there is a driver, so that no GPU is a fault")
def test_no_gpu_is_a_note_until_one_is_asked_for(tmp_path):
    done = doctor(tmp_path)
    assert done.exit_code == 0
    assert any("no GPU found; training works on the CPU" in line for line in lines_of(done, "note"))
    done = doctor(tmp_path, "--device", "cuda")
    assert done.exit_code == 4
    (fault,) = (line for line in lines_of(done, "fault") if not line.startswith("/dev/shm"))
    assert "device cuda: no GPU found; use --device cpu" in fault


def test_a_name_that_means_no_device_is_wrong_usage(tmp_path):
    error = doctor(tmp_path, "--device", "gpu").exception
    assert isinstance(error, ConfigError)
    assert "--device gpu: expected auto, cpu, cuda" in str(error)


def test_json_has_the_versions_and_every_finding(tmp_path):
    done = doctor(tmp_path, "--device", "cpu", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["faults"] == 0
    assert told["environment"]["medssl"] == medssl.__version__
    assert told["environment"]["torch"] == torch.__version__
    assert {"monai", "numpy", "scipy", "nibabel", "SimpleITK", "blosc2", "threads", "gpus"} <= told[
        "environment"
    ].keys()
    found = {finding["topic"]: finding for finding in told["findings"]}
    assert found["machine"]["values"]["cores"] >= 1
    assert found["disk"]["values"]["free"] > 0
    assert found["cpu"]["values"]["precision"] == "fp32"
    assert 0 < found["cpu"]["values"]["off"] < 1e-4


@pytest.mark.parametrize(("name", "says"), [("file", "is a file, not a folder"), ("absent", "does not exist")])
def test_a_place_that_is_no_folder_is_a_fault(tmp_path, name, says):
    (tmp_path / "file").write_text("mine")
    done = doctor(tmp_path / name, "--device", "cpu")
    assert done.exit_code == 4
    (fault,) = lines_of(done, "fault")
    assert says in fault
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that even root cannot write to")
def test_a_folder_that_cannot_be_written_to_is_a_fault():
    done = doctor("/proc", "--device", "cpu")
    assert done.exit_code == 4
    (fault,) = lines_of(done, "fault")
    assert "/proc cannot be written to" in fault
    assert "make it writable" in fault


def test_optional_packages_that_are_old_or_broken_are_named(packages):
    install(packages, "h5py", "2.10.0")
    install(packages, "connected-components-3d", "3.12.1", "cc3d", "raise RuntimeError('built for another numpy')")
    done = doctor_beside(packages, packages.parent / "empty")
    assert done.returncode == 4
    old, broken = sorted(lines_of(done, "fault"), key=lambda line: "h5py" not in line)
    assert "h5py 2.10.0 is installed, but medssl needs >=3.10" in old
    assert 'python -m pip install "h5py>=3.10"' in old
    assert "connected-components-3d 3.12.1 does not load (RuntimeError: built for another numpy)" in broken


def test_a_torch_that_does_not_load_is_told_once_with_the_rest(packages):
    text = "libcudart.so.13: cannot open shared object file"
    install(packages, "torch", "2.13.0+cu130", "torch", f"print('noise')\nraise OSError('{text}')")
    done = doctor_beside(packages, packages.parent / "empty", "--json")
    assert done.returncode == 4
    told = json.loads(done.stdout)
    (fault,) = (finding["found"] for finding in told["findings"] if finding["state"] == "fault")
    assert fault == f"torch 2.13.0+cu130 does not load (OSError: {text})"
    assert told["environment"]["threads"] is None
    assert [finding["topic"] for finding in told["findings"]][-3:] == ["disk", "blosc2", "NIfTI"]


def test_torch_2_9_is_a_fault_that_says_why_even_where_nothing_can_print_it_in_colour(packages):
    install(packages, "torch", "2.9.1+cu128")
    (packages / "rich.py").write_text("raise ImportError('wrong build')")
    done = doctor_beside(packages, packages.parent / "empty")
    assert done.returncode == 4
    torch_, rich = lines_of(done, "fault")
    assert "torch 2.9.1+cu128 is installed (3-D convolutions in mixed precision are slow" in torch_
    assert "does not load (ImportError: wrong build)" in rich
    assert list((packages.parent / "empty").iterdir()) == []


@pytest.mark.parametrize("broken", ["pydantic", "typer", "packaging"])
def test_a_package_that_the_command_needs_is_one_line_and_the_doctor_goes_on(packages, broken):
    (packages / f"{broken}.py").write_text("raise ImportError('wrong build')")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(packages), os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "medssl", "check", str(packages)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert re.match(
        rf"medssl: {broken} .*does not load \(ImportError: wrong build\); python -m pip install .*{broken}", line
    )
    done = doctor_beside(packages)
    assert done.returncode == 4
    (fault,) = lines_of(done, "fault")
    assert "ImportError: wrong build" in fault
    assert any("relative error" in line for line in lines_of(done, "ok"))


def test_an_error_about_something_else_is_no_fault_of_a_package():
    assert fault_behind(ValueError("other")) is None
    assert fault_behind(ImportError("other", name="medssl.other")) is None
    assert fault_behind(ImportError("loads all the same", name="numpy")) is None


# GPUs and drivers, as values

OLD = Driver("535.183.01", (12, 2), True)
NEW = Driver("580.65.06", (13, 0), True)


@pytest.mark.parametrize(
    ("driver", "build", "is_fault", "says"),
    [
        (None, "13.0", False, "no GPU found"),
        (None, None, False, "no GPU found"),
        (NEW, None, True, "driver 580.65.06 is installed, but torch is built without CUDA"),
        (OLD, "13.0", True, "driver 535.183.01 supports CUDA 12.2, but torch is built for CUDA 13.0"),
        (OLD, "12.8", True, "torch cannot use a GPU (why)"),  # minor versions are compatible: another reason
        (Driver("580.65.06", None, False), "13.0", True, "this process has no access to a GPU"),
    ],
)
def test_why_there_is_no_gpu(driver, build, is_fault, says, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = why_no_gpu(driver, build, "why")
    assert found.is_fault == is_fault
    assert says in found.found
    assert found.fix


def test_an_old_driver_is_told_which_one_is_needed_and_hidden_gpus_are_no_fault(monkeypatch):
    assert "driver 580 or newer, or a torch build for CUDA 12" in why_no_gpu(OLD, "13.0").fix
    ancient = Driver("470.82", (11, 4), True)  # no torch that medssl takes is built for its CUDA
    assert (
        "driver 580 or newer, or driver 525 or newer and a torch build for CUDA 12" in why_no_gpu(ancient, "13.0").fix
    )
    assert "install driver 525 or newer; or use" in why_no_gpu(ancient, "12.8").fix
    assert why_no_gpu(NEW, "13.0").is_fault
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not why_no_gpu(NEW, "13.0").is_fault


def test_what_takes_the_cpu_by_itself_says_that_a_gpu_is_idle_and_says_it_once(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for driver, says in (
        (None, ""),
        (Driver("580.65.06", (13, 0), True), "--device auto uses the CPU: driver 580.65"),
    ):
        monkeypatch.setattr("medssl.device.find_driver", lambda driver=driver: driver)
        tell_once.cache_clear()
        for _ in range(2):
            assert choose_device("auto").type == "cpu"
        told = capsys.readouterr().err
        assert says in told
        assert told.count("\n") == bool(says)
    tell_once.cache_clear()
    assert choose_device("cpu").type == "cpu"
    assert capsys.readouterr().err == ""
    tell_once.cache_clear()


def with_gpu(monkeypatch, capability):
    """As on a machine with a GPU, under a build of torch for those from 7.5 to 9.0."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "A GPU")
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    empty = torch.empty
    monkeypatch.setattr(
        "torch.empty",
        lambda *size, device: SimpleNamespace(device=gpu) if "cuda" in str(device) else empty(*size, device=device),
    )
    tell_once.cache_clear()
    return gpu


@pytest.mark.parametrize(
    ("capability", "says"), [((7, 0), "CUDA 12.6 support older GPUs"), ((12, 0), "newer builds support newer GPUs")]
)
def test_a_gpu_that_torch_has_no_kernels_for_is_left_or_refused(monkeypatch, capsys, capability, says):
    with_gpu(monkeypatch, capability)
    assert choose_device("auto").type == "cpu"
    told = capsys.readouterr().err
    assert "--device auto uses the CPU: A GPU: torch has kernels for sm_75, sm_80, sm_90 only" in told
    assert says in told
    with pytest.raises(DeviceError, match=f"device cuda: A GPU: torch has kernels .*{says}"):
        choose_device("cuda")


@pytest.mark.parametrize(("version", "lines"), [("2.8.0", 0), ("2.9.1+cu130", 1), ("2.13.0", 0)])
def test_a_gpu_under_a_slow_torch_is_told_of_once(monkeypatch, capsys, version, lines):
    gpu = with_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr("torch.__version__", version)
    assert [choose_device("cuda") for _ in range(2)] == [gpu, gpu]
    told = capsys.readouterr().err
    assert told.count("\n") == told.count("torch 2.9") == lines


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90", "sm_120"], True),
        ((8, 9), ["sm_80", "sm_90"], True),  # as an 8.x
        ((7, 0), ["sm_75", "sm_80"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # translated when it loads
        ((6, 1), ["sm_75", "compute_75"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((9, 0), ["gfx90a", "gfx1100"], True),  # not NVIDIA's
    ],
)
def test_a_gpu_runs_kernels_of_its_own_generation(capability, built_for, runs):
    assert (why_no_kernels(capability, built_for) is None) == runs


def test_the_driver_of_either_kernel_module_is_read():
    closed = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12\n"
    )
    free = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n"
    assert driver_version(closed) == "535.183.01"
    assert driver_version(free) == "580.65.06"
    assert driver_version("something else") is None

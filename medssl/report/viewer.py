"""The interactive viewer of a report: NiiVue and a script for each drawn case, which the page loads on demand.

A page opened from disk may neither fetch files nor import modules, but it may load plain scripts. So NiiVue must be the
build `niivue.umd.js` of its npm package, and volumes are stored as base64 in scripts. medssl contains no copy of NiiVue
and downloads it only on request (`medssl report --viewer`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.data.io import read_volume, write_label
from medssl.data.volume import Affine, Source, Volume
from medssl.errors import ConfigError, DataError
from medssl.files import whole_file
from medssl.palette import grey_window
from medssl.progress import track
from medssl.report.gallery import Files, Wall

PACKAGE, VERSION = "@niivue/niivue", "0.69.0"
DIGEST = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""SHA-256 of `dist/niivue.umd.js` in that version; a downloaded file that differs is refused."""
MOST_VOXELS = 4_000_000
"""Larger volumes are thinned out: only every n-th voxel along an axis is shown."""

_BUILD = "dist/niivue.umd.js"


@dataclass(frozen=True)
class Scene:
    """One entry of the viewer: its title and the scripts to load."""

    title: str
    group: str
    picture: tuple[int, int]
    """Index of the wall in the gallery, and of the picture on that wall."""
    case_script: str
    prediction_script: str
    steps: tuple[int, int, int]
    """Step between the voxels shown along each axis; 1 shows all."""
    centre: tuple[float, float, float]
    """Where the crosshair starts, in RAS millimetres."""


# ---- NiiVue


def find_niivue(given: Path | None = None) -> Path | None:
    """Return the build of NiiVue to use: the given file, or one that npm fetched or installed; None if there is none.

    Raises:
        ConfigError: the given file does not exist or is not a build of NiiVue.
    """
    if given is not None:
        if not given.is_file() or b"niivue" not in given.read_bytes():
            raise ConfigError(f"{given}: expected the file niivue.umd.js from the npm package {PACKAGE} ({_BUILD})")
        return given
    parents = [Path.cwd(), *Path.cwd().parents, Path("/usr"), Path("/usr/local")]
    installed = [path / "node_modules" / PACKAGE / _BUILD for path in parents]
    installed += [path / "lib" / "node_modules" / PACKAGE / _BUILD for path in parents[-2:]]
    return next((path for path in (_cached(), *installed) if path.is_file()), None)


def fetch_niivue() -> Path:
    """Download NiiVue with npm into the user's cache and return the path of its build.

    Raises:
        ConfigError: npm is missing or fails, or the file does not have the known SHA-256 of this version.
    """
    target, wanted = _cached(), f"{PACKAGE}@{VERSION}"
    help = f"download {wanted} yourself and name its {_BUILD} with --niivue"
    if shutil.which("npm") is None:
        raise ConfigError(f"npm: not found, but --viewer needs it to fetch {wanted}; install npm, or {help}")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["npm", "pack", wanted], cwd=folder, capture_output=True, text=True, check=False)
        packed = next(Path(folder).glob("*.tgz"), None)
        if done.returncode or packed is None:
            said = " ".join(done.stderr.split())[-300:]
            raise ConfigError(f"npm could not fetch {wanted}: {said}\nCheck the network and try again, or {help}")
        with tarfile.open(packed) as archive:
            member = archive.extractfile(f"package/{_BUILD}")
            content = member.read() if member else b""
    if hashlib.sha256(content).hexdigest() != DIGEST:
        raise ConfigError(
            f"{wanted}: the downloaded {_BUILD} does not have the expected SHA-256 and was not kept; check which "
            "registry npm uses and try again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as partial:
        partial.write_bytes(content)
    return target


def _cached() -> Path:
    try:
        home = Path.home()
    except RuntimeError:  # a user id without an account has no home folder
        home = Path(tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "medssl" / f"niivue-{VERSION}.umd.js"


# ---- what the page loads


OURS = ("niivue.js", "case-*.js", "prediction-*.js")
"""Name patterns of the files of a viewer."""


def write_viewer(folder: Path, library: Path | None, walls: Sequence[Wall]) -> list[Scene]:
    """Write NiiVue and the volumes of all pictures into `folder`, and return the entries of the viewer.

    The viewer of an earlier report is removed from the folder. Without a library, or without a picture, nothing is
    written and the list is empty.
    """
    for old in (path for name in OURS for path in folder.glob(name)):
        old.unlink()
    drawn = [(i, j) for i, wall in enumerate(walls) for j, picture in enumerate(wall.pictures) if picture.slices]
    if library is None or not drawn:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(library, folder / "niivue.js")
    cases: dict[tuple[Source, Source], str] = {}
    scenes = []
    with track("write viewer", len(drawn)) as advance:
        for i, j in drawn:
            files = walls[i].pictures[j].files
            assert files is not None
            try:
                scenes.append(_write_scene(folder, walls[i], (i, j), files, cases))
            except DataError:
                continue  # a volume was removed after it was drawn
            finally:
                advance(walls[i].pictures[j].case)
    return scenes


def _write_scene(
    folder: Path, wall: Wall, place: tuple[int, int], files: Files, cases: dict[tuple[Source, Source], str]
) -> Scene:  # fmt: skip
    image, prediction, reference = files.read()
    picture, steps = wall.pictures[place[1]], _steps(image)
    key = (files.image, files.reference)
    if key not in cases:
        cases[key] = f"case-{len(cases)}.js"
        shown = {"image": _bytes_of(image.channels[0]), "reference": reference.array}
        _write_script(folder / cases[key], shown, image.affine, steps)
    ours = {"prediction": prediction.array}
    if files.uncertainty is not None:
        ours["uncertainty"] = np.rint(255 * read_volume(files.uncertainty).array)
    script = f"prediction-{place[0]}-{place[1]}.js"
    _write_script(folder / script, ours, image.affine, steps)
    title = f"{picture.rank}: {picture.case}, Dice {100 * picture.dice:.1f}"
    group = f"{wall.row.name}, seed {wall.run.seed}"
    return Scene(title, group, place, cases[key], script, steps, _centre(reference, prediction))


def _centre(reference: Volume, prediction: Volume) -> tuple[float, float, float]:
    """Return the foreground voxel nearest to the centre of the foreground, in millimetres.

    The foreground is that of the reference, or of the prediction if the reference has none. Without any, the centre of
    the volume is returned.
    """
    shown = reference if (reference.array > 0).any() else prediction
    voxels = np.argwhere(shown.array > 0)
    if not len(voxels):
        voxels = np.array(shown.shape)[None] // 2
    nearest = voxels[np.abs(voxels - voxels.mean(0)).sum(1).argmin()]
    x, y, z = (shown.affine @ [*nearest, 1])[:3]
    return float(x), float(y), float(z)


def _steps(volume: Volume) -> tuple[int, int, int]:
    """Return steps along the axes that leave at most `MOST_VOXELS` voxels; the finest axes are thinned out first."""
    steps = [1, 1, 1]
    while np.prod([-(-n // s) for n, s in zip(volume.shape, steps, strict=True)]) > MOST_VOXELS:
        finest = min(range(3), key=lambda axis: steps[axis] * volume.spacing[axis])
        steps[finest] += 1
    return steps[0], steps[1], steps[2]


def _bytes_of(grey: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = grey_window(grey)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.clip((grey - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _write_script(path: Path, arrays: dict[str, NDArray[Any]], affine: Affine, steps: tuple[int, int, int]) -> None:
    """Write volumes as a script that passes them to the page.

    JSON with base64 contains nothing that could close the script element.
    """
    thinned = affine @ np.diag([*steps, 1.0])
    volumes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, array in arrays.items():
            file = Path(folder) / f"{name}.nii.gz"
            kept = array[:: steps[0], :: steps[1], :: steps[2]]
            write_label(file, kept, Volume(kept, thinned))
            volumes[name] = base64.b64encode(file.read_bytes()).decode()
    with whole_file(path) as partial:
        partial.write_text(f"medsslVolumes({json.dumps(path.name)}, {json.dumps(volumes)});\n", encoding="utf-8")

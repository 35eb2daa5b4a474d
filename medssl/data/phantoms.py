"""Synthetic volumes for the demo and the tests: a short-axis cardiac MRI stack and a cone-beam CT of a jaw.

Anatomy is a handful of shapes given by signed distances in millimetres, positive inside. They are painted
over one another with soft edges, and the label comes from the same distances. The patient is drawn from one
generator and the scanner from another, so a seed shows the same anatomy at any shape: the field of view
stays, the voxels shrink or grow. While drawing, x runs to the patient's left, y to the back and z up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medssl.data.io import write_image
from medssl.errors import ConfigError, DataError

Array = NDArray[np.float64]
Shape = tuple[int, int, int]
Field = tuple[float, float, float]
"""Extent of the drawn volume along x, y and z in millimetres."""

KINDS: dict[str, tuple[str, ...]] = {
    "cardiac": ("background", "right ventricle", "myocardium", "left ventricle"),
    "cbct": ("background", "tooth", "pulp canal"),
    "teeth": ("background", "incisor", "canine", "back tooth", "pulp canal"),
}
"""What can be drawn, each with its class names by label value; `teeth` is `cbct` with teeth told apart,
of which a patient may lack a kind."""

DEFAULT_SHAPES: dict[str, Shape] = {"cardiac": (64, 64, 10), "cbct": (64, 56, 40), "teeth": (64, 56, 40)}
"""About 2.3 x 2.3 x 9 mm a voxel for `cardiac`, 0.55 mm along each axis for the others."""

# A multiple of 3, so that cases take turns in being oblique whatever the seed of their dataset.
CASES_PER_SEED = 30_000


@dataclass(frozen=True)
class Phantom:
    """One drawn case."""

    image: NDArray[np.int16]
    """`(X, Y, Z)`: arbitrary units for `cardiac`, roughly Hounsfield units for `cbct`."""
    label: NDArray[np.uint8]
    """`(X, Y, Z)`, classes in the order of `KINDS`."""
    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index to RAS millimetres; turned off the axes for every third seed."""


def draw(kind: str, seed: int, shape: Shape | None = None) -> Phantom:
    """Draw one case: a pure function of its arguments.

    Args:
        kind: a key of `KINDS`.
        seed: at least 0.
        shape: voxels `(X, Y, Z)` over the field of view; by default the kind's `DEFAULT_SHAPES`.

    Raises:
        ConfigError: no such kind.
    """
    if kind not in _DRAWERS:
        raise ConfigError(f"phantoms: expected one of {', '.join(KINDS)}, found {kind!r}")
    patient, scanner, table = np.random.default_rng(seed).spawn(3)
    image, label, field = _DRAWERS[kind](patient, scanner, shape or DEFAULT_SHAPES[kind])
    affine = _affine(table, label.shape, field, oblique=seed % 3 == 2)
    # Whole numbers, as scanners store them, also hide the last bits in which processors' cosines differ.
    stored = np.rint(np.clip(image, -1024, 32767)).astype(np.int16)
    return _store(stored, label, affine, flips=_STORED[table.integers(len(_STORED))])


def write_dataset(
    folder: Path, kind: str, *, labelled: int, unlabelled: int = 0, seed: int = 0, shape: Shape | None = None
) -> None:
    """Write phantoms as `images/<id>.nii.gz` and, for the labelled ones only, `labels/<id>.nii.gz`.

    The labelled cases come first: `cardiac_000`, `cardiac_001` and so on. A case depends on `seed` and its
    number alone, so asking for more cases keeps the earlier ones.

    Raises:
        DataError: the folder already holds something.
        ConfigError: no such kind.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: expected a new or empty folder for phantoms, found files there; choose another")
    for number in range(labelled + unlabelled):
        phantom = draw(kind, seed * CASES_PER_SEED + number, shape)
        name = f"{kind}_{number:03d}.nii.gz"
        write_image(folder / "images" / name, phantom.image, phantom.affine)
        if number < labelled:
            write_image(folder / "labels" / name, phantom.label, phantom.affine)


# The heart: a stack of thick slices from the base (on top) to the apex.


class _Heart(NamedTuple):
    """Signed distances in millimetres within each slice; `level` is 0 at the base and 1 at the apex."""

    cavity: Array
    wall: Array
    right: Array
    level: Array


def _cardiac(patient: Generator, scanner: Generator, shape: Shape) -> tuple[Array, NDArray[np.uint8], Field]:
    width = patient.uniform(132, 164)
    field = (width, width, patient.uniform(82, 98))
    thin = 3  # thin slices are averaged into each thick one, which blurs the apex as a scanner does
    x, y, z = _points((*shape[:2], shape[2] * thin), field)
    breath = np.repeat(scanner.normal(0, 1.2, (2, shape[2])).clip(-3, 3), thin, axis=1)
    x, y = x + breath[0], y + breath[1]
    warp = [_waves(patient, (x, y, z), 45) for _ in range(2)]
    x, y = x + 1.5 * warp[0], y + 1.5 * warp[1]

    heart = _heart(patient, x, y, z / field[2])
    image = _paint_chest(patient, x, y, z, heart).reshape(*shape, thin).mean(-1)
    cavity, wall, right, level = (part[:, :, thin // 2 :: thin] for part in heart)
    label = np.select([level < 0, cavity > 0, wall > 0, right > 0], [0, 3, 2, 1], 0).astype(np.uint8)
    return _receive(patient, scanner, image, field), label, field


def _heart(rng: Generator, x: Array, y: Array, height: Array) -> _Heart:
    """A thick-walled left ventricle with the right one wrapped around its septum."""
    level = (0.5 - height) * rng.uniform(1.02, 1.2) - rng.uniform(0.0, 0.12)
    x = x - rng.uniform(2, 14) - rng.normal(0, 6) * (level - 0.5)  # the long axis leans a little
    y = y - rng.uniform(-8, 6) - rng.normal(0, 6) * (level - 0.5)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)

    def lobes(amount: float) -> Array:
        phases = rng.uniform(-np.pi, np.pi, 3)
        turned = angle + rng.normal(0, 0.5) * level
        waves: Array = sum(np.cos(k * turned + phase) / k for k, phase in enumerate(phases, start=1))
        return 1 + amount * waves

    taper = np.sqrt(np.clip(1 - np.clip(level, 0, 1) ** 2.3, 0, None))
    thickness = rng.uniform(6.5, 12) * lobes(rng.uniform(0.05, 0.18))
    inner = rng.uniform(15, 26)
    outer = (inner * lobes(0.06) + thickness) * taper
    cavity = np.minimum(outer - thickness * (0.55 + 0.45 * taper), (0.95 - level) * 90)

    septum = np.pi + rng.uniform(-0.15, 0.55)  # towards the patient's right and a little to the front
    reach = rng.uniform(1.25, 1.65)
    across = ((angle - septum + np.pi) % (2 * np.pi) - np.pi) / reach
    across = across + rng.uniform(-0.25, 0.25) * (1 - across**2)
    bulge = np.clip(1 - np.abs(across) ** rng.uniform(1.8, 2.6), 0, None) ** 0.8
    length = rng.uniform(0.8, 0.92)
    depth = rng.uniform(19, 33) * np.sqrt(np.clip(1 - np.clip(level / length, 0, 1) ** 1.7, 0, None))
    right = np.minimum(outer + depth * bulge - radius, radius - outer)
    # Where the crescent thins to a sliver it is neither seen nor traced.
    right = np.where(depth * bulge > 3, right, np.minimum(right, -1.0))
    return _Heart(cavity - radius, outer - radius, right, level)


def _paint_chest(rng: Generator, x: Array, y: Array, z: Array, heart: _Heart) -> Array:
    """Signal of blood, muscle, fat, lung and the organs around the heart, about 20 to 300."""
    blood = rng.uniform(190, 300)
    muscle = blood / rng.uniform(1.7, 3.2)
    fat = rng.uniform(170, 290)
    liver = muscle * rng.uniform(0.9, 1.6)
    texture = _waves(rng, (x, y, z), 12)
    patches = _waves(rng, (x, y, z), 28)
    pixel = 2.0

    image = 22 + 5 * texture  # lung
    vessels = 1.2 * _waves(rng, (x, y, z), 20) - 2.2
    _paint(image, vessels, rng.uniform(0.5, 0.8) * blood, 0.4)

    diaphragm = rng.uniform(14, 40) - 0.28 * z
    organ = y - diaphragm + 0.32 * (x + rng.uniform(-10, 30)) + 4 * patches
    _paint(image, organ, liver * (1 + 0.06 * texture), pixel)
    _paint(image, np.minimum(organ - 3, 1.5 * patches - 2.4), liver * rng.uniform(1.2, 1.7), pixel)
    stomach = 17 - np.hypot(x - rng.uniform(38, 60), y - rng.uniform(34, 60)) + 3 * patches
    _paint(image, stomach, rng.choice([18.0, muscle, fat]), pixel)

    mediastinum = 13 + 3 * patches - np.hypot((x + rng.uniform(-6, 10)) / 1.5, y - rng.uniform(40, 54))
    _paint(image, mediastinum, muscle * 1.1 + 0.35 * fat * np.clip(texture, 0, 1), pixel)
    aorta = rng.uniform(8, 12) - np.hypot(x - rng.uniform(8, 30), y - rng.uniform(44, 54))
    _paint(image, aorta + 1.5, muscle, pixel)
    _paint(image, aorta, blood * rng.uniform(0.85, 1.05), pixel)

    chest = y + rng.uniform(44, 58) - 0.0055 * (x - rng.uniform(-15, 25)) ** 2 + 1.5 * patches
    _paint(image, 9 - chest, muscle * (1 + 0.1 * texture), pixel)
    ribs = np.minimum(4 - np.abs(chest - 4), 6 * np.cos((x + 0.5 * z) / 5) - 3)
    _paint(image, ribs, 0.5 * muscle, pixel)
    _paint(image, 1 - chest, fat * (1 + 0.08 * texture), pixel)
    _paint(image, -rng.uniform(8, 18) - chest, 4.0, pixel)

    _paint_heart(rng, image, (x, y, z), heart, blood, muscle, fat)
    return image


def _paint_heart(
    rng: Generator, image: Array, points: Sequence[Array], heart: _Heart, blood: float, muscle: float, fat: float
) -> None:
    """Both ventricles with fat outside, trabeculae and papillary muscles inside; vessels above the base."""
    fine, patches = _waves(rng, points, 9), _waves(rng, points, 30)
    apex = (1.03 - heart.level) * 60
    sac = np.minimum(np.maximum(heart.wall, heart.right), apex)
    _paint(image, sac + 4 + 3 * patches, fat * (0.8 + 0.1 * fine), 2.0)
    _paint(image, np.minimum(heart.right + rng.uniform(2.5, 4), apex), muscle, 2.0)
    _paint(image, np.minimum(heart.wall, apex), muscle * (1 + 0.05 * fine + 0.06 * patches), 2.0)
    _paint(image, heart.right, blood * rng.uniform(0.85, 1.0) * (1 + 0.04 * fine), 2.0)
    trabeculae = np.minimum(heart.right, 1.6 * fine - 1.5 + 0.12 * (6 - heart.right))
    _paint(image, trabeculae, 0.7 * muscle + 0.3 * blood, 1.6)
    _paint(image, heart.cavity, blood * (1 + 0.05 * patches), 2.0)
    spongy = np.minimum(heart.cavity, 2 * fine - 1.2 - 0.8 * heart.cavity)
    _paint(image, spongy, 0.5 * muscle + 0.5 * blood, 1.6)
    papillary = np.minimum(1.8 - np.abs(heart.cavity - rng.uniform(3.5, 5.5)), 2.2 * _waves(rng, points, 22) - 1.3)
    papillary = np.minimum(papillary, 20 * (0.35 - np.abs(heart.level - 0.45)))
    _paint(image, papillary, 1.1 * muscle, 1.6)
    above = np.minimum(-heart.level * 60, np.maximum(heart.wall, heart.right) - 3)
    _paint(image, above, 0.8 * blood * (1 + 0.1 * patches), 2.0)


def _receive(patient: Generator, scanner: Generator, image: Array, field: Field) -> Array:
    """What the coil makes of a clean image: shading, ghosts of the motion, Rician noise, a gain."""
    x, y, z = _points(image.shape, field)
    shading = np.exp(0.16 * _waves(patient, (x, y, z), 160) - scanner.uniform(0.1, 0.5) * y / field[1])
    image = image * shading
    ghosts = scanner.uniform(0, 0.06) * np.roll(image, round(image.shape[1] * scanner.uniform(0.25, 0.5)), axis=1)
    image = gaussian_filter(image + ghosts, (scanner.uniform(0.2, 0.55),) * 2 + (0,))
    noise = scanner.uniform(6, 15) * scanner.normal(size=(2, *image.shape))
    received: Array = np.hypot(image + noise[0], noise[1]) * np.exp(scanner.uniform(-0.7, 1.4))
    return received


# The jaw: teeth of enamel, dentine and pulp in an arch of bone, some of them with metal.


class _Kind(NamedTuple):
    """Size of a kind of tooth in millimetres, before the patient's own scale."""

    name: str
    """As in `KINDS`."""
    width: float
    """Along the arch."""
    depth: float
    """From lip or cheek to tongue."""
    crown: float
    root: float
    blunt: bool
    """Has cusps to chew with instead of an edge to bite with."""
    roots: int


_HALF_ARCH = (
    _Kind("incisor", 5.2, 6.0, 8.4, 10.5, False, 1),
    _Kind("incisor", 5.7, 6.4, 8.6, 11.5, False, 1),
    _Kind("canine", 6.7, 7.6, 9.4, 13.0, False, 1),
    _Kind("back tooth", 6.9, 7.6, 7.6, 12.0, True, 1),
    _Kind("back tooth", 7.2, 8.2, 7.2, 12.0, True, 1),
    _Kind("back tooth", 10.4, 9.8, 6.8, 11.5, True, 2),
)
"""From the middle of the jaw to its back."""


class _Arch(NamedTuple):
    """The parabola through the teeth's necks, seen from above."""

    middle: float
    front: float
    bend: float

    def inwards(self, x: Array, y: Array) -> Array:
        """Millimetres from the arch towards the tongue, near the arch."""
        slope = 2 * self.bend * (x - self.middle)
        return (y - self.front - self.bend * (x - self.middle) ** 2) / np.hypot(1, slope)

    def place(self, along: float) -> tuple[float, float, float]:
        """x, y and heading (radians) at a signed length in millimetres from the middle."""
        x = np.linspace(-40, 40, 801)
        length = np.cumsum(np.hypot(1, 2 * self.bend * x)) * 0.1
        offset = float(np.interp(along, length - length[400], x))
        return self.middle + offset, self.front + self.bend * offset**2, float(np.arctan(2 * self.bend * offset))


class _Tooth(NamedTuple):
    """Signed distances in millimetres at the voxels around one tooth, each `(N,)`."""

    name: str
    """Of its kind."""
    near: NDArray[np.bool_]
    """`(X, Y, Z)`, the N voxels."""
    body: Array
    pulp: Array
    enamel: Array
    """Of the surface that divides enamel (positive, outside) from dentine."""
    filling: Array
    height: Array
    """Along the tooth's axis, 0 at its neck and positive in its crown."""

    def mark(self, label: NDArray[np.uint8], value: int, distance: Array) -> None:
        """Give a class to the voxels where `distance` is positive."""
        label[self.near] = np.where(distance > 0, value, label[self.near])


def _cbct(
    patient: Generator, scanner: Generator, shape: Shape, kind: str = "cbct"
) -> tuple[Array, NDArray[np.uint8], Field]:
    field = (patient.uniform(33, 37), patient.uniform(29, 32.5), patient.uniform(21.5, 24))
    points = _points(shape, field)
    x, y, z = _turned(points, patient.normal(0, 4, 3).clip(-9, 9))
    arch = _Arch(patient.uniform(-4, 4), 10 - field[1] / 2 + patient.uniform(-1, 1), patient.uniform(0.05, 0.085))
    neck = patient.uniform(0.5, 2.5)
    image = _paint_jaw(patient, scanner, (x, y, z), arch, neck)

    teeth = _teeth(patient, (x, y, z), arch, neck)
    filled = patient.permutation(len(teeth))[: patient.choice([0, 0, 1, 2])]
    for number, tooth in enumerate(teeth):
        _paint_tooth(patient, image, tooth, metal=number in filled)
    for number in filled:
        image += _streaks(scanner, points, teeth[number])

    label, names = np.zeros(shape, np.uint8), KINDS[kind]
    for tooth in teeth:
        tooth.mark(label, names.index(tooth.name if kind == "teeth" else "tooth"), tooth.body)
    for tooth in teeth:
        tooth.mark(label, names.index("pulp canal"), np.minimum(tooth.pulp, tooth.body - 0.6))
    return _expose(scanner, image, points, field), label, field


def _paint_jaw(rng: Generator, scanner: Generator, points: Sequence[Array], arch: _Arch, neck: float) -> Array:
    """Bone with a hard shell and a spongy core, gum, tongue, lip and the air between them."""
    x, y, z = points
    inwards = arch.inwards(x, y) + 0.5 * _waves(rng, points, 14)
    rough = _waves(rng, points, 7)
    crest = neck - rng.uniform(1.2, 3.0) + 0.5 * _waves(rng, points, 12)
    cortex = rng.uniform(1050, 1500)
    sponge = rng.uniform(350, 750) + 160 * rough
    sponge = sponge + 380 * gaussian_filter(scanner.normal(size=x.shape), 0.9)

    image = np.full(x.shape, -1000.0)
    lip = np.minimum(inwards + rng.uniform(9.5, 13) - 0.12 * z, -rng.uniform(2.6, 4.4) - inwards)
    _paint(image, lip, 30 + 25 * rough, 0.8)
    tongue = np.minimum(inwards - rng.uniform(3.8, 6), rng.uniform(-1, 7) + rough - z)
    _paint(image, tongue, 70 + 25 * rough, 0.8)
    bone = np.minimum(rng.uniform(4.0, 5.0) - 0.1 * z - np.abs(inwards), crest - z)
    _paint(image, np.maximum(bone + rng.uniform(1.0, 2.2), crest + 1.5 - z - 4 * np.abs(inwards / 8) ** 4), 60.0, 0.8)
    _paint(image, np.minimum(crest - 3 - z, 12 + inwards), 40 + 25 * rough, 0.8)
    _paint(image, bone, cortex, 0.7)
    _paint(image, bone - rng.uniform(1.0, 1.7), sponge, 0.9)
    canal = rng.uniform(0.9, 1.4) - np.hypot(inwards - rng.uniform(-1, 1), z + rng.uniform(9.5, 11))
    _paint(image, canal + 0.5, cortex * 0.8, 0.7)
    _paint(image, canal, 120.0, 0.7)
    return image


def _teeth(rng: Generator, points: Sequence[Array], arch: _Arch, neck: float) -> list[_Tooth]:
    """Both sides of the arch, some teeth missing, each in a pose of its own."""
    scale = rng.uniform(0.86, 1.02)
    pulp = rng.uniform(0.8, 1.35)  # wide in the young, narrow in the old
    gap = rng.uniform(0.0, 0.35)
    crowding = rng.uniform(0.4, 1.6)
    teeth = []
    for side in (-1, 1):
        along = 0.0
        for number, kind in enumerate(_HALF_ARCH):
            size = scale * rng.uniform(0.93, 1.07)
            along += kind.width * size / 2
            x, y, heading = arch.place(side * along)
            along += kind.width * size / 2 + gap
            missing = number > 0 and rng.random() < 0.08
            centre = (x, y + crowding * rng.normal(0, 0.35), neck + rng.normal(0, 0.4))
            tilt = crowding * rng.normal(0, (5, 4, 7)).clip(-10, 10) + (0, 3 * side, np.degrees(heading))
            tooth = _tooth(rng, points, centre, tilt, kind, size, pulp)
            if not missing and (tooth.body > 0).any():
                teeth.append(tooth)
    return teeth


def _tooth(
    rng: Generator,
    points: Sequence[Array],
    centre: Sequence[float],
    tilt: Array,
    kind: _Kind,
    size: float,
    pulp: float,
) -> _Tooth:
    """A tooth with its neck's `centre` in mm, turned by `tilt` in degrees; `size` and `pulp` scale it and its pulp."""
    near = np.hypot(points[0] - centre[0], points[1] - centre[1]) < 9
    # In the tooth's frame x runs along the arch, y towards the tongue and z from the neck up.
    x, y, z = _turned([axis[near] - start for axis, start in zip(points, centre, strict=True)], tilt)
    width, depth = kind.width * size / 2, kind.depth * size / 2
    crown, root = kind.crown * size * rng.uniform(0.92, 1.08), kind.root * size * rng.uniform(0.82, 1.05)
    level = np.where(z > 0, z / crown, z / root)  # -1 at the tip of the root, 1 at the top of the crown

    wide = width * np.interp(level, [-1, -0.9, -0.5, 0, 0.5, 0.85, 1], [0.12, 0.32, 0.56, 0.74, 0.98, 0.97, 0.85])
    crown_depth = [0.98, 0.88, 0.7] if kind.blunt else [0.8, 0.4, 0.22]
    deep = depth * np.interp(level, [-1, -0.9, -0.5, 0, 0.25, 0.55, 0.85, 1], [0.12, 0.36, 0.7, 0.9, 1, *crown_depth])
    canal_x = x
    if kind.roots == 2:
        apart = width * 0.5 * np.clip((-0.15 - level) / 0.3, 0, 1)
        x, canal_x = np.abs(x) - apart, np.abs(x) - apart
        wide = np.maximum(wide - 0.75 * apart, 0.9)
    y = y - (0.12 * depth * np.clip(level, 0, 1) ** 2 if not kind.blunt else 0.0)

    power = 2.0 + 1.0 * np.clip(level, 0, 1)
    ratio = (np.abs(x / wide) ** power + np.abs(y / deep) ** power) ** (1 / power)
    groove = (0.16 if kind.blunt else 0.0) * crown * np.exp(-((y / (0.35 * depth)) ** 2))
    body = np.minimum.reduce([(1 - ratio) * np.minimum(wide, deep), z + root, crown - groove - z])

    along, thin = [-0.96, -0.5, 0, 0.3, 0.55], [0.05, 0.13, 0.25, 0.3, 0.08]
    hollow = pulp * np.interp(level, along, thin)
    pulp_x, pulp_y = np.maximum(width * hollow, 0.42), np.maximum(depth * hollow * 1.05, 0.46)
    cavity = (1 - np.hypot(canal_x / pulp_x, y / pulp_y)) * np.minimum(pulp_x, pulp_y)
    cavity = np.minimum.reduce([cavity, z + 0.93 * root, 0.52 * crown - z])

    cap = np.interp(level, [-0.05, 0.05, 0.5, 1], [-0.3, 0.3, 1.0, 1.5]) - body
    drilled = np.minimum.reduce([body + 0.1, 0.62 * width - np.hypot(x, 0.7 * y), z - 0.6 * crown])
    return _Tooth(kind.name, near, body, cavity, cap, drilled, z)


def _paint_tooth(rng: Generator, image: Array, tooth: _Tooth, *, metal: bool) -> None:
    """Ligament around the root, then dentine, enamel, pulp and perhaps a filling."""
    values = image[tooth.near]
    ligament = np.minimum(tooth.body + rng.uniform(0.25, 0.45), -tooth.height)
    _paint(values, ligament, 150.0, 0.6)
    _paint(values, tooth.body, rng.uniform(1350, 1700), 0.6)
    _paint(values, np.minimum(tooth.body, tooth.enamel), rng.uniform(2250, 2750), 0.6)
    _paint(values, tooth.pulp, rng.uniform(100, 320), 0.6)
    if metal:
        _paint(values, tooth.filling, rng.uniform(3800, 7000), 0.6)
    image[tooth.near] = values


def _streaks(rng: Generator, points: Sequence[Array], tooth: _Tooth) -> Array:
    """Rays in Hounsfield units that run out of a tooth's filling, in its own slices."""
    filling = np.zeros(tooth.near.shape, bool)
    filling[tooth.near] = tooth.filling > 0
    if not filling.any():
        return np.zeros(filling.shape)
    x, y, z = (axis - axis[filling].mean() for axis in points)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    rays: Array = sum(rng.normal() * np.cos(k * angle + rng.uniform(-np.pi, np.pi)) for k in range(2, 22))
    reach: Array = np.exp(-((z / rng.uniform(1.6, 2.6)) ** 2)) * np.minimum(radius, 3) / (radius + 6)
    return rng.uniform(300, 600) * rays * reach


def _expose(rng: Generator, image: Array, points: Sequence[Array], field: Field) -> Array:
    """What the detector makes of it: blur, cupping, grey values off by a gain and an offset, noise."""
    x, y, _ = points
    image = gaussian_filter(image, rng.uniform(0.3, 0.6))
    cupping = rng.uniform(60, 260) * (2 * np.hypot(x / field[0], y / field[1]) ** 2 - 0.5)
    noise = gaussian_filter(rng.normal(size=image.shape), rng.uniform(0.35, 0.55))
    noise *= rng.uniform(90, 230) / noise.std()
    exposed: Array = image * rng.uniform(0.88, 1.1) + rng.uniform(-90, 90) + cupping + noise
    return exposed


# Shared by both kinds.


def _points(shape: Shape, field: Field) -> tuple[Array, Array, Array]:
    """x, y and z of every voxel centre in millimetres from the middle of the field, each of `shape`."""
    axes = [(np.arange(n) + 0.5) / n * length - length / 2 for n, length in zip(shape, field, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x, y, z


def _turned(points: Sequence[Array], degrees: Sequence[float] | Array) -> tuple[Array, Array, Array]:
    """Coordinates along axes that are turned about x, y and z, in that order."""
    matrix = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    x, y, z = (sum(matrix[i, axis] * points[i] for i in range(3)) for axis in range(3))
    return x, y, z


def _waves(rng: Generator, points: Sequence[Array], length: float) -> Array:
    """A smooth random field of standard deviation about 1 whose bumps lie about `length` mm apart."""
    total = np.zeros(points[0].shape)
    for _ in range(8):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / (length * rng.uniform(0.7, 1.6) * np.linalg.norm(direction))
        phase = rng.uniform(-np.pi, np.pi)
        total += np.cos(sum(k * axis for k, axis in zip(direction, points, strict=True)) + phase)
    return total / 2


def _paint(image: Array, distance: Array, value: Array | float, softness: float) -> None:
    """Lay `value` over the image where `distance` is positive; the edge is `softness` mm wide."""
    image += np.clip(0.5 + distance / softness, 0, 1) * (value - image)


def _affine(rng: Generator, shape: Shape, field: Field, *, oblique: bool) -> Array:
    """Voxel index to RAS millimetres for a volume drawn with x to the left, y to the back and z up."""
    degrees = rng.uniform(5, 14, 3) * rng.choice([-1, 1], 3)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() if oblique else np.eye(3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(np.divide(field, shape))
    middle = (np.array(shape) - 1) / 2
    affine[:3, 3] = rng.uniform(-40, 40, 3).round(1) - affine[:3, :3] @ middle
    return affine


def _store(image: NDArray[np.int16], label: NDArray[np.uint8], affine: Array, flips: tuple[int, ...]) -> Phantom:
    """Reverse some axes of both arrays; the affine keeps every voxel where it was in the world."""
    affine = affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (label.shape[axis] - 1)
        affine[:3, axis] *= -1
    return Phantom(np.ascontiguousarray(np.flip(image, flips)), np.ascontiguousarray(np.flip(label, flips)), affine)


_STORED: tuple[tuple[int, ...], ...] = ((), (), (0, 1), (1,))
"""Axes to reverse before storing: LPS twice as often as RAS and LAS."""

_DRAWERS: dict[str, Callable[[Generator, Generator, Shape], tuple[Array, NDArray[np.uint8], Field]]] = {
    "cardiac": _cardiac,
    "cbct": _cbct,
    "teeth": partial(_cbct, kind="teeth"),
}

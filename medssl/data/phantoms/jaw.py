"""A cone-beam CT of a jaw: teeth of enamel, dentine and pulp in an arch of bone, some of them with metal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medssl.data.phantoms.brush import Array, Field, Shape, coordinates, paint, turned, waves

TOOTH, CANAL = "tooth", "pulp canal"


class _Kind(NamedTuple):
    """Size of a kind of tooth in millimetres, before the patient's own scale."""

    name: str
    """Its class, if kinds of teeth have separate classes."""
    width: float
    """Along the arch."""
    depth: float
    """From lip or cheek to tongue."""
    crown: float
    root: float
    blunt: bool
    """Whether it has cusps instead of a cutting edge."""
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
    """Name of its kind."""
    near: NDArray[np.bool_]
    """`(X, Y, Z)`, the N voxels."""
    body: Array
    pulp: Array
    enamel: Array
    """Distance from the surface between enamel (positive, outside) and dentine."""
    filling: Array
    height: Array
    """Along the tooth's axis, 0 at its neck and positive in its crown."""

    def mark(self, label: NDArray[np.uint8], value: int, distance: Array) -> None:
        """Give a class to the voxels where `distance` is positive."""
        label[self.near] = np.where(distance > 0, value, label[self.near])


def draw_jaw(
    patient: Generator, scanner: Generator, shape: Shape, *, classes: Sequence[str]
) -> tuple[Array, NDArray[np.uint8], Field]:
    """Draw a case; return image and label, `(X, Y, Z)`, and the field of view.

    Args:
        classes: names by label value; if kinds of teeth are not among them, all teeth are TOOTH.
    """
    field = (patient.uniform(33, 37), patient.uniform(29, 32.5), patient.uniform(21.5, 24))
    points = coordinates(shape, field)
    x, y, z = turned(points, patient.normal(0, 4, 3).clip(-9, 9))
    arch = _Arch(patient.uniform(-4, 4), 10 - field[1] / 2 + patient.uniform(-1, 1), patient.uniform(0.05, 0.085))
    neck = patient.uniform(0.5, 2.5)
    image = _paint_jaw(patient, scanner, (x, y, z), arch, neck)

    teeth = _teeth(patient, (x, y, z), arch, neck)
    filled = patient.permutation(len(teeth))[: patient.choice([0, 0, 1, 2])]
    for number, tooth in enumerate(teeth):
        _paint_tooth(patient, image, tooth, metal=number in filled)
    for number in filled:
        image += _streaks(scanner, points, teeth[number])

    label = np.zeros(shape, np.uint8)
    for tooth in teeth:
        tooth.mark(label, classes.index(tooth.name if tooth.name in classes else TOOTH), tooth.body)
    for tooth in teeth:
        tooth.mark(label, classes.index(CANAL), np.minimum(tooth.pulp, tooth.body - 0.6))
    return _expose(scanner, image, points, field), label, field


def _paint_jaw(rng: Generator, scanner: Generator, points: Sequence[Array], arch: _Arch, neck: float) -> Array:
    """Bone with a hard shell and a spongy core, gum, tongue, lip and the air between them."""
    x, y, z = points
    inwards = arch.inwards(x, y) + 0.5 * waves(rng, points, 14)
    rough = waves(rng, points, 7)
    crest = neck - rng.uniform(1.2, 3.0) + 0.5 * waves(rng, points, 12)
    cortex = rng.uniform(1050, 1500)
    sponge = rng.uniform(350, 750) + 160 * rough
    sponge = sponge + 380 * gaussian_filter(scanner.normal(size=x.shape), 0.9)

    image = np.full(x.shape, -1000.0)
    lip = np.minimum(inwards + rng.uniform(9.5, 13) - 0.12 * z, -rng.uniform(2.6, 4.4) - inwards)
    paint(image, lip, 30 + 25 * rough, 0.8)
    tongue = np.minimum(inwards - rng.uniform(3.8, 6), rng.uniform(-1, 7) + rough - z)
    paint(image, tongue, 70 + 25 * rough, 0.8)
    bone = np.minimum(rng.uniform(4.0, 5.0) - 0.1 * z - np.abs(inwards), crest - z)
    paint(image, np.maximum(bone + rng.uniform(1.0, 2.2), crest + 1.5 - z - 4 * np.abs(inwards / 8) ** 4), 60.0, 0.8)
    paint(image, np.minimum(crest - 3 - z, 12 + inwards), 40 + 25 * rough, 0.8)
    paint(image, bone, cortex, 0.7)
    paint(image, bone - rng.uniform(1.0, 1.7), sponge, 0.9)
    canal = rng.uniform(0.9, 1.4) - np.hypot(inwards - rng.uniform(-1, 1), z + rng.uniform(9.5, 11))
    paint(image, canal + 0.5, cortex * 0.8, 0.7)
    paint(image, canal, 120.0, 0.7)
    return image


def _teeth(rng: Generator, points: Sequence[Array], arch: _Arch, neck: float) -> list[_Tooth]:
    """Teeth on both sides of the arch, some of them missing, each in its own pose."""
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
    x, y, z = turned([axis[near] - start for axis, start in zip(points, centre, strict=True)], tilt)
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
    paint(values, ligament, 150.0, 0.6)
    paint(values, tooth.body, rng.uniform(1350, 1700), 0.6)
    paint(values, np.minimum(tooth.body, tooth.enamel), rng.uniform(2250, 2750), 0.6)
    paint(values, tooth.pulp, rng.uniform(100, 320), 0.6)
    if metal:
        paint(values, tooth.filling, rng.uniform(3800, 7000), 0.6)
    image[tooth.near] = values


def _streaks(rng: Generator, points: Sequence[Array], tooth: _Tooth) -> Array:
    """Streaks in Hounsfield units that start at the filling of a tooth, in its slices."""
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
    """Add the artefacts of a scanner: blur, cupping, a gain and an offset of grey values, and noise."""
    x, y, _ = points
    image = gaussian_filter(image, rng.uniform(0.3, 0.6))
    cupping = rng.uniform(60, 260) * (2 * np.hypot(x / field[0], y / field[1]) ** 2 - 0.5)
    noise = gaussian_filter(rng.normal(size=image.shape), rng.uniform(0.35, 0.55))
    noise *= rng.uniform(90, 230) / noise.std()
    exposed: Array = image * rng.uniform(0.88, 1.1) + rng.uniform(-90, 90) + cupping + noise
    return exposed

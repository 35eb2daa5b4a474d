"""A short-axis cardiac MRI: a stack of thick slices from the base (on top) to the apex."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medssl.data.phantoms.brush import Array, Field, Shape, coordinates, paint, waves

CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")


class _Heart(NamedTuple):
    """Signed distances in millimetres within each slice; `level` is 0 at the base and 1 at the apex."""

    cavity: Array
    wall: Array
    right: Array
    level: Array


def draw_heart(patient: Generator, scanner: Generator, shape: Shape) -> tuple[Array, NDArray[np.uint8], Field]:
    """Draw a case; return image and label, `(X, Y, Z)`, and the field of view."""
    width = patient.uniform(132, 164)
    field = (width, width, patient.uniform(82, 98))
    thin = 3  # thin slices are averaged into each thick one, which blurs the apex as a scanner does
    x, y, z = coordinates((*shape[:2], shape[2] * thin), field)
    breath = np.repeat(scanner.normal(0, 1.2, (2, shape[2])).clip(-3, 3), thin, axis=1)
    x, y = x + breath[0], y + breath[1]
    warp = [waves(patient, (x, y, z), 45) for _ in range(2)]
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
    # Where the crescent becomes a sliver, it is neither visible nor labelled.
    right = np.where(depth * bulge > 3, right, np.minimum(right, -1.0))
    return _Heart(cavity - radius, outer - radius, right, level)


def _paint_chest(rng: Generator, x: Array, y: Array, z: Array, heart: _Heart) -> Array:
    """Signal of blood, muscle, fat, lung and the organs around the heart, about 20 to 300."""
    blood = rng.uniform(190, 300)
    muscle = blood / rng.uniform(1.7, 3.2)
    fat = rng.uniform(170, 290)
    liver = muscle * rng.uniform(0.9, 1.6)
    texture = waves(rng, (x, y, z), 12)
    patches = waves(rng, (x, y, z), 28)
    pixel = 2.0

    image = 22 + 5 * texture  # lung
    vessels = 1.2 * waves(rng, (x, y, z), 20) - 2.2
    paint(image, vessels, rng.uniform(0.5, 0.8) * blood, 0.4)

    diaphragm = rng.uniform(14, 40) - 0.28 * z
    organ = y - diaphragm + 0.32 * (x + rng.uniform(-10, 30)) + 4 * patches
    paint(image, organ, liver * (1 + 0.06 * texture), pixel)
    paint(image, np.minimum(organ - 3, 1.5 * patches - 2.4), liver * rng.uniform(1.2, 1.7), pixel)
    stomach = 17 - np.hypot(x - rng.uniform(38, 60), y - rng.uniform(34, 60)) + 3 * patches
    paint(image, stomach, rng.choice([18.0, muscle, fat]), pixel)

    mediastinum = 13 + 3 * patches - np.hypot((x + rng.uniform(-6, 10)) / 1.5, y - rng.uniform(40, 54))
    paint(image, mediastinum, muscle * 1.1 + 0.35 * fat * np.clip(texture, 0, 1), pixel)
    aorta = rng.uniform(8, 12) - np.hypot(x - rng.uniform(8, 30), y - rng.uniform(44, 54))
    paint(image, aorta + 1.5, muscle, pixel)
    paint(image, aorta, blood * rng.uniform(0.85, 1.05), pixel)

    chest = y + rng.uniform(44, 58) - 0.0055 * (x - rng.uniform(-15, 25)) ** 2 + 1.5 * patches
    paint(image, 9 - chest, muscle * (1 + 0.1 * texture), pixel)
    ribs = np.minimum(4 - np.abs(chest - 4), 6 * np.cos((x + 0.5 * z) / 5) - 3)
    paint(image, ribs, 0.5 * muscle, pixel)
    paint(image, 1 - chest, fat * (1 + 0.08 * texture), pixel)
    paint(image, -rng.uniform(8, 18) - chest, 4.0, pixel)

    _paint_heart(rng, image, (x, y, z), heart, blood, muscle, fat)
    return image


def _paint_heart(
    rng: Generator, image: Array, points: Sequence[Array], heart: _Heart, blood: float, muscle: float, fat: float
) -> None:
    """Both ventricles with fat outside, trabeculae and papillary muscles inside; vessels above the base."""
    fine, patches = waves(rng, points, 9), waves(rng, points, 30)
    apex = (1.03 - heart.level) * 60
    sac = np.minimum(np.maximum(heart.wall, heart.right), apex)
    paint(image, sac + 4 + 3 * patches, fat * (0.8 + 0.1 * fine), 2.0)
    paint(image, np.minimum(heart.right + rng.uniform(2.5, 4), apex), muscle, 2.0)
    paint(image, np.minimum(heart.wall, apex), muscle * (1 + 0.05 * fine + 0.06 * patches), 2.0)
    paint(image, heart.right, blood * rng.uniform(0.85, 1.0) * (1 + 0.04 * fine), 2.0)
    trabeculae = np.minimum(heart.right, 1.6 * fine - 1.5 + 0.12 * (6 - heart.right))
    paint(image, trabeculae, 0.7 * muscle + 0.3 * blood, 1.6)
    paint(image, heart.cavity, blood * (1 + 0.05 * patches), 2.0)
    spongy = np.minimum(heart.cavity, 2 * fine - 1.2 - 0.8 * heart.cavity)
    paint(image, spongy, 0.5 * muscle + 0.5 * blood, 1.6)
    papillary = np.minimum(1.8 - np.abs(heart.cavity - rng.uniform(3.5, 5.5)), 2.2 * waves(rng, points, 22) - 1.3)
    papillary = np.minimum(papillary, 20 * (0.35 - np.abs(heart.level - 0.45)))
    paint(image, papillary, 1.1 * muscle, 1.6)
    above = np.minimum(-heart.level * 60, np.maximum(heart.wall, heart.right) - 3)
    paint(image, above, 0.8 * blood * (1 + 0.1 * patches), 2.0)


def _receive(patient: Generator, scanner: Generator, image: Array, field: Field) -> Array:
    """Add the artefacts of a scanner: coil shading, motion ghosts, Rician noise and a gain."""
    x, y, z = coordinates(image.shape, field)
    shading = np.exp(0.16 * waves(patient, (x, y, z), 160) - scanner.uniform(0.1, 0.5) * y / field[1])
    image = image * shading
    ghosts = scanner.uniform(0, 0.06) * np.roll(image, round(image.shape[1] * scanner.uniform(0.25, 0.5)), axis=1)
    image = gaussian_filter(image + ghosts, (scanner.uniform(0.2, 0.55),) * 2 + (0,))
    noise = scanner.uniform(6, 15) * scanner.normal(size=(2, *image.shape))
    received: Array = np.hypot(image + noise[0], noise[1]) * np.exp(scanner.uniform(-0.7, 1.4))
    return received

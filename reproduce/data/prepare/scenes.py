"""The images of the generated detection datasets: textured rectangles on a noisy background."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reproduce.data.prepare.textures import Texture, draw_image

OBJECT_SHARE = (0.35, 0.7)
"""Side of a VOC object as a share of the image's."""
OBJECT_PX = ((20, 30), (36, 80), (100, 125))
"""Sides of small, medium and large COCO objects, which COCO divides at areas of 32 x 32 and 96 x 96."""
OBJECT_SIZE_PROBABILITIES = (0.1, 0.2, 0.7)
"""How often each size is tried; a large object often leaves no room for others."""
MAX_OVERLAP = 0.2
"""Objects that share more of the smaller one's area are not drawn."""


@dataclass(frozen=True)
class SceneObject:
    """An object: its class number, its corners in pixels (right and bottom excluded), and whether it is difficult.

    A difficult object is drawn faintly.
    """

    label: int
    left: int
    top: int
    right: int
    bottom: int
    difficult: bool


@dataclass(frozen=True)
class Scenes:
    """The images of a detection dataset: the range of their sides in pixels, and one texture per label."""

    size_px: tuple[int, int]
    textures: list[Texture]
    draw_sides: Callable[[np.random.Generator, int, int], tuple[int, int]]
    """Draws an object's width and height in pixels, given the image's width and height."""


def voc_object_sides(rng: np.random.Generator, width: int, height: int) -> tuple[int, int]:
    """Draw an object's width and height in pixels, as shares of the image's."""
    w, h = (int(side * rng.uniform(*OBJECT_SHARE)) for side in (width, height))
    return w, h


def coco_object_sides(rng: np.random.Generator, width: int, height: int) -> tuple[int, int]:
    """Draw the width and height in pixels of a small, medium or large object."""
    low, high = OBJECT_PX[rng.choice(len(OBJECT_PX), p=OBJECT_SIZE_PROBABILITIES)]
    w, h = (min(int(rng.integers(low, high + 1)), side) for side in (width, height))
    return w, h


def draw_scene(rng: np.random.Generator, scenes: Scenes) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw a gray image `(height, width)` uint8 and its one to three objects, which overlap little.

    About one object in ten is difficult.
    """
    width, height = (int(side) for side in rng.integers(scenes.size_px[0], scenes.size_px[1] + 1, 2))
    ground = rng.normal(128, 8, (height, width)) + rng.uniform(-40, 40)
    objects: list[SceneObject] = []
    for _ in range(int(rng.integers(1, 4))):
        w, h = scenes.draw_sides(rng, width, height)
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        label, difficult = int(rng.integers(len(scenes.textures))), bool(rng.random() < 0.1)
        new = SceneObject(label, left, top, left + w, top + h, difficult)
        if any(_overlap(new, other) > MAX_OVERLAP for other in objects):
            continue
        texture = draw_image(rng, scenes.textures[label], h, w).astype(float)
        part = ground[top : top + h, left : left + w]
        part += (texture - part) * (0.3 if difficult else 1.0)
        objects.append(new)
    return np.clip(ground, 0, 255).astype(np.uint8), objects


def _overlap(a: SceneObject, b: SceneObject) -> float:
    """Return the shared area as a share of the smaller object's."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    areas = [(each.right - each.left) * (each.bottom - each.top) for each in (a, b)]
    return max(0, width) * max(0, height) / min(areas)

"""The pictures behind the generated sets: grey textures whose class is their weave and direction.

Made to be worth learning from. Two crops of one picture share its class and nothing else: brightness, contrast and
spacing wander *within* each picture, so they differ between its crops as much as between pictures, and there is no
colour. (Coloured or evenly lit pictures teach a network to recognise the picture instead: its features then get worse
than random ones.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BRIGHTNESS = 35.0
CONTRAST = 40.0
CONTRAST_WANDER = 0.4
PHASE_WANDER = 1.0
PERIOD_PX = (9.0, 14.0)
DIRECTION_JITTER = 0.08
NOISE = 8.0


@dataclass(frozen=True)
class Texture:
    """A class of textures: its weave, its wave, and its angle in radians (flips make +a and -a one class)."""

    weave: str
    wave: str
    angle: float


WAVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sine": np.sin,
    "thin": lambda t: 2 * np.exp(3 * (np.cos(t) - 1)) - 0.7,
}


def wander(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth random surface `(height, width)` of about unit variance: three long waves."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    surface = np.zeros((height, width))
    for _ in range(3):
        direction, frequency, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5), rng.uniform(0, 2 * np.pi)
        surface += np.cos(2 * np.pi * frequency * (np.cos(direction) * x + np.sin(direction) * y) + phase)
    return surface / np.sqrt(1.5)


def weave(rng: np.random.Generator, texture: Texture, height: int, width: int) -> np.ndarray:
    """One texture `(height, width)` of unit variance, with its own spacing, phase and bends."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    angle = texture.angle + rng.normal(0, DIRECTION_JITTER)
    frequency = 2 * np.pi / np.exp(rng.uniform(*np.log(PERIOD_PX)))
    phases = rng.uniform(0, 2 * np.pi, 2)
    along = (np.cos(angle) * x + np.sin(angle) * y) * frequency + phases[0] + PHASE_WANDER * wander(rng, height, width)
    across = (np.cos(angle) * y - np.sin(angle) * x) * frequency + phases[1] + PHASE_WANDER * wander(rng, height, width)
    wave = WAVES[texture.wave]
    if texture.weave == "stripes":
        surface = wave(along)
    elif texture.weave == "grid":
        surface = np.maximum(wave(along), wave(across))
    elif texture.weave == "checker":
        surface = wave(along) * wave(across)
    else:
        surface = wave(along + 4.4 * np.abs((across / (4 * np.pi)) % 2 - 1))
    return surface / surface.std()


def picture(rng: np.random.Generator, texture: Texture, height: int, width: int) -> np.ndarray:
    """A grey picture `(height, width)` uint8 of one texture, unevenly lit."""
    contrast = CONTRAST * np.exp(CONTRAST_WANDER * wander(rng, height, width))
    light = 128 + BRIGHTNESS * wander(rng, height, width)
    grey = light + 0.8 * contrast * weave(rng, texture, height, width) + rng.normal(0, NOISE, (height, width))
    return np.clip(grey, 0, 255).astype(np.uint8)

"""The images of the generated datasets: gray textures whose class is their weave and direction.

They are designed to be worth learning from. Two crops of one image share its class and nothing else: brightness,
contrast and spacing vary *within* each image, so crops of one image differ in them as much as crops of two, and there
is no color. (On colored or evenly lit images a network learns to recognize the image instead, and its features become
worse than random ones.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BRIGHTNESS_STD = 25.0
"""Variation of brightness within an image, in gray levels (0 to 255)."""
CONTRAST = 40.0
"""Typical contrast of a texture, in gray levels."""
CONTRAST_VARIATION = 0.4
PHASE_VARIATION = 0.6
"""Bends of the texture's lines, in radians."""
PERIOD_PX = (9.0, 14.0)
DIRECTION_JITTER = 0.05
"""Standard deviation of an image's angle around its class's, in radians."""
NOISE_STD = 5.0


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


def smooth_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a smooth random surface `(height, width)` of about unit variance: the sum of three long waves."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    surface = np.zeros((height, width))
    for _ in range(3):
        direction, frequency, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5), rng.uniform(0, 2 * np.pi)
        surface += np.cos(2 * np.pi * frequency * (np.cos(direction) * x + np.sin(direction) * y) + phase)
    return surface / np.sqrt(1.5)


def draw_pattern(rng: np.random.Generator, texture: Texture, height: int, width: int) -> np.ndarray:
    """Draw a texture `(height, width)` of unit variance, with random spacing, phase and bends."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    angle = texture.angle + rng.normal(0, DIRECTION_JITTER)
    frequency = 2 * np.pi / np.exp(rng.uniform(*np.log(PERIOD_PX)))
    phases = rng.uniform(0, 2 * np.pi, 2)
    bends = [PHASE_VARIATION * smooth_noise(rng, height, width) for _ in range(2)]
    along = (np.cos(angle) * x + np.sin(angle) * y) * frequency + phases[0] + bends[0]
    across = (np.cos(angle) * y - np.sin(angle) * x) * frequency + phases[1] + bends[1]
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


def draw_image(rng: np.random.Generator, texture: Texture, height: int, width: int) -> np.ndarray:
    """Draw an unevenly lit gray image `(height, width)` uint8 of one texture."""
    contrast = CONTRAST * np.exp(CONTRAST_VARIATION * smooth_noise(rng, height, width))
    light = 128 + BRIGHTNESS_STD * smooth_noise(rng, height, width)
    gray = (
        light + 0.8 * contrast * draw_pattern(rng, texture, height, width) + rng.normal(0, NOISE_STD, (height, width))
    )
    return np.clip(gray, 0, 255).astype(np.uint8)

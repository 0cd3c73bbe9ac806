"""The pixels of one decoded image as 8-bit RGB. Images whose values this would change are refused."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

WHITE_16 = 65535
"""The largest value of 16 bits; 257 times that of 8 bits."""
LEAST_WHITE_16 = 4096
"""A data set of 16-bit images must have a pixel as bright as this: 8 bits would leave it fewer than 16 levels."""
DIRECT = frozenset({"RGB", "YCbCr", "CMYK", "HSV"})
"""Modes of colour images that Pillow converts by their definition. Embedded colour profiles are not applied."""


class Pixels(NamedTuple):
    """An image of the data set."""

    values: np.ndarray
    """[H, W, 3] uint8"""
    grey: bool
    """Whether it is stored as grey"""
    brightest: int | None = None
    """The largest value of a 16-bit image, None for other images"""


class UnclearPixels(ValueError):
    """The image can be read, but 8-bit RGB would not be the same picture. One line: what came, and what to do."""


def pixels_of(image: Image.Image) -> Pixels:
    """Return the pixels of an image in 8-bit RGB.

    16-bit grey is divided by 257 and rounded, so that white stays white; float grey has to lie in 0 .. 1, and is
    multiplied by 255. An alpha channel is dropped where it is opaque everywhere. Raises UnclearPixels for
    transparency, for floats outside of 0 .. 1, for wider integers, for modes that have no definition in RGB, and for
    files with several pictures; OSError and the like for damaged ones.
    """
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # an MPO is a photograph with its previews
        raise UnclearPixels(f"one picture, got {getattr(image, 'n_frames', 0)} in one file; save each as a file")
    mode = image.mode
    if mode in ("1", "L", "P", "RGB") and "transparency" in image.info:
        return _opaque(image, grey=mode in ("1", "L"))
    if mode in ("1", "L"):
        return Pixels(np.asarray(image.convert("RGB")), True)
    if mode in DIRECT or mode == "P":
        return Pixels(np.asarray(image.convert("RGB")), False)
    if mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        return _opaque(image, grey=mode in ("LA", "La"))
    if mode == "I" or mode.startswith("I;16"):
        return _from_16_bits(np.asarray(image))
    if mode == "F":
        return _from_floats(np.asarray(image))
    raise UnclearPixels(f"grey or RGB, got an image of mode {mode}; convert it to RGB")


def _opaque(image: Image.Image, *, grey: bool) -> Pixels:
    if image.mode in ("La", "RGBa"):  # with colours that the alpha has been multiplied into
        image = image.convert("LA" if grey else "RGBA")
    values = np.asarray(image.convert("RGBA"))
    if values[..., 3].min(initial=255) < 255:
        raise UnclearPixels(
            "opaque pixels, got an image with transparent ones, whose colour depends on what is behind them; flatten "
            "it onto a background"
        )
    return Pixels(np.ascontiguousarray(values[..., :3]), grey)


def _from_16_bits(values: np.ndarray) -> Pixels:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > WHITE_16:
        raise UnclearPixels(f"grey of at most 16 bits, got values from {low} to {high}; scale them to 0 .. {WHITE_16}")
    reduced = ((values.astype(np.int64) + 128) // 257).astype(np.uint8)
    return Pixels(np.repeat(reduced[..., None], 3, axis=2), True, high)


def _from_floats(values: np.ndarray) -> Pixels:
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        said = f"from {values.min():g} to {values.max():g}" if np.isfinite(values).all() else "that are not finite"
        raise UnclearPixels(f"float pixels in 0 .. 1, got values {said}; scale them, or save 8-bit images")
    reduced = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    return Pixels(np.repeat(reduced[..., None], 3, axis=2), True)

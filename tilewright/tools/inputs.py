"""Inputs for a model from the command line: .npz and .npy files, an image, or random numbers.

In: a model's input specs and what the user named. Out: one array per input, by name.
"""
from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.core.errors import UserError
from tilewright.model import Model
from tilewright.runtime.descriptor import TensorSpec

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's images scaled to 0 … 1: what classifiers trained on it expect to be taken out."""

Array = np.ndarray[Any, Any]


def gather(model: Model, files: Sequence[str], image: Path | None, normalize: bool, seed: int) -> dict[str, Array]:
    """Inputs by name: from `files` ("all.npz", "name=one.npy", "one.npy" for a model of one input), from an image, and
    random ones for whatever is left. Raises UserError "input-file", "input-unknown", "input-image"."""
    feeds = read_named(files, [i.name for i in model.inputs])
    if image is not None:
        spec = _image_input([i for i in model.inputs if i.name not in feeds])
        feeds[spec.name] = read_image(image, spec, normalize)
    return {name: feeds.get(name, random) for name, random in model.random_inputs(seed).items()}


def read_named(files: Sequence[str], names: Sequence[str]) -> dict[str, Array]:
    """The arrays of files for a model with inputs of these names. Raises UserError "input-file", "input-unknown"."""
    feeds: dict[str, Array] = {}
    for text in files:
        name, equals, path = text.rpartition("=")
        found = _read(Path(path))
        if isinstance(found, dict):
            feeds |= found
        elif equals or len(names) == 1:
            feeds[name if equals else names[0]] = found
        else:
            raise UserError("input-file", f"{path} holds one array, the model has {len(names)} inputs",
                            hint=f"--input NAME={path}, with NAME one of {', '.join(names)}")
    for name in feeds:
        if name not in names:
            raise UserError("input-unknown", f"the model has no input {name!r}", hint="inputs: " + ", ".join(names))
    return feeds


def _read(path: Path) -> Array | dict[str, Array]:
    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError("input-file", f"{path} cannot be read as .npy or .npz: {error}", where=str(path),
                        hint="numpy.savez(path, name=array) writes one") from error


def _image_input(specs: Sequence[TensorSpec]) -> TensorSpec:
    for spec in specs:
        if spec.dtype.is_float and len(spec.shape) == 4 and (spec.shape[1] in (1, 3) or spec.shape[3] in (1, 3)):
            return spec
    raise UserError("input-image", "the model has no input for an image: a float tensor [N, 1 or 3, height, width]",
                    hint="give the arrays as --input file.npz")


def read_image(path: Path, spec: TensorSpec, normalize: bool) -> Array:
    """The image, scaled to an input's size, as numbers from 0 to 1 ([N, C, H, W] or [N, H, W, C], repeated N times); with
    `normalize` colours are taken relative to ImageNet's mean and deviation."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise UserError("extra-missing", "reading images needs Pillow", hint="pip install pillow") from error
    channels_first = spec.shape[1] in (1, 3)
    n, channels, height, width = spec.shape if channels_first else (spec.shape[0], spec.shape[3], *spec.shape[1:3])
    try:
        with Image.open(path) as opened:
            scaled = opened.convert("RGB" if channels == 3 else "L").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError("input-file", f"{path} cannot be read as an image: {error}", where=str(path),
                        hint="a PNG, JPEG, or what else Pillow reads") from error
    pixels = np.asarray(scaled, np.float32).reshape(height, width, channels) / 255
    if normalize and channels == 3:
        pixels = (pixels - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    if channels_first:
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(np.broadcast_to(pixels, (1 if n < 0 else n, *pixels.shape)), spec.dtype.numpy())

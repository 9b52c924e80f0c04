"""Decoding of compressed images: by Pillow, on the host."""
from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import u8
from tilewright.core.errors import UserError
from tilewright.graph.infer import expect, expect_dtype, expect_rank, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.text import promised
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Var, const

CHANNELS = {"RGB": 3, "BGR": 3, "Grayscale": 1}


def _infer(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype is u8, "u8")
    expect_rank(op, x, 1)
    expect(op.attrs["format"] in CHANNELS, "attribute-invalid",
           lambda: f"{op.op}: the pixel format {op.attrs['format']!r} is none of {', '.join(CHANNELS)}")
    return [TensorType(u8, op.attrs["shape"] or (Var("height"), Var("width"), const(CHANNELS[op.attrs["format"]])))]


def _decode(attrs: dict[str, Any], x: Array) -> Array:
    try:
        from PIL import Image
    except ImportError as e:
        raise UserError("pillow-missing", "decoding images needs Pillow", hint="pip install 'tilewright[image]'") from e
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(x.tobytes()))
            pixels = np.asarray(picture.convert("L" if attrs["format"] == "Grayscale" else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise UserError("run-value", f"image_decode: {e}") from e
    if attrs["format"] == "BGR":
        pixels = pixels[..., ::-1]
    return promised("image_decode", attrs, np.ascontiguousarray(pixels.reshape((*pixels.shape[:2], -1))))


RECORDS = (
    OpRecord("image_decode", "opaque", _infer, _decode, host="Pillow reads the formats",
             attrs={"format": Attr("str", "RGB", "RGB, BGR or Grayscale"),
                    "shape": Attr("dims", None, "the result's shape where the model declares it")},
             doc="The pixels [height, width, channels] of the bytes of an image file (JPEG, PNG, BMP, …)."),
)

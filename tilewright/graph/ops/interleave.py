"""interleave: channels that hold the phases of a finer grid are put into their places (pixel shuffle, with a crop).

With factors f along the spatial axes, channel r * C + c at place q is channel c at place q * f + r, r numbering the phases
row major. In the blocked layout each phase is whole blocks of channels.
"""
from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.graph.infer import expect, expect_rank, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.window import is_blocked
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import ZERO, Expr, as_int, const
from tilewright.tensor.compute import Tensor, compute


def _infer(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    a = op.attrs
    rank = len(a["factors"])
    expect_rank(op, x, 2 + rank + is_blocked(a["layout"]))
    channels = as_int(x.shape[1])
    expect(min(a["factors"]) > 0 and channels is not None and channels % prod(a["factors"]) == 0, "shape-mismatch",
           lambda: f"interleave: factors {a['factors']} of {x.type}")
    expect(len(a["starts"]) == len(a["sizes"]) == rank, "attribute-invalid", f"interleave: {a}")
    left = const((channels or 0) // prod(a["factors"]))
    return [TensorType(x.dtype, (x.shape[0], left, *a["sizes"], *x.shape[2 + rank:]))]


def _interleave(attrs: dict[str, Any], x: Array) -> Array:
    f, rank = attrs["factors"], len(attrs["factors"])
    n, tail = x.shape[0], x.shape[2 + rank:]
    split = x.reshape(n, *f, -1, *x.shape[2:])
    order = [0, 1 + rank, *[k for d in range(rank) for k in (2 + rank + d, 1 + d)], *range(2 + 2 * rank, split.ndim)]
    full = split.transpose(order).reshape(n, -1, *[s * k for s, k in zip(x.shape[2:2 + rank], f, strict=True)], *tail)
    crop = tuple(slice(s, s + k) for s, k in zip(attrs["starts"], attrs["sizes"], strict=True))
    return np.ascontiguousarray(full[(slice(None), slice(None), *crop)])


def _compute(op: Operation, x: Tensor) -> Tensor:
    f, starts = op.attrs["factors"], op.attrs["starts"]
    channels = op.output.shape[1]

    def cell(*i: Expr) -> Expr:
        at = [i[2 + d] + s for d, s in enumerate(starts)]
        phase: Expr = ZERO
        for p, k in zip(at, f, strict=True):
            phase = phase * k + p % k
        return x[(i[0], phase * channels + i[1], *[p // k for p, k in zip(at, f, strict=True)], *i[2 + len(f):])]
    out: Tensor = compute(op.output.shape, cell, name="interleave")
    return out


RECORDS = (
    OpRecord("interleave", "injective", _infer, _interleave, _compute,
             {"factors": Attr("ints"), "starts": Attr("ints", doc="first places of the finer grid that are kept"),
              "sizes": Attr("dims", doc="how many are kept"), "layout": Attr("str", "NCHW")},
             doc="[N, phases * C, …] → [N, C, …] on a grid finer by the factors."),
)

"""What convolutions and poolings share: window attributes, output sizes, layouts, sliding windows in NumPy."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.errors import UserError
from tilewright.graph.infer import dim, expect, show
from tilewright.graph.ir import Operation, Value
from tilewright.graph.registry import Array
from tilewright.loop.ir import Expr, IntoExpr, as_int

LAYOUTS = ("NCHW", "NCHWc")


def is_blocked(layout: str) -> bool:
    return layout == "NCHWc"


def expect_layout(op: Operation, layout: str) -> None:
    expect(layout in LAYOUTS, "attribute-invalid", f"{op.op}: unknown layout {layout!r}", "one of " + ", ".join(LAYOUTS))


def spatial(shape: Sequence[Expr], layout: str) -> tuple[Expr, ...]:
    """The spatial sizes of an activation [N, C, …] or [N, C/b, …, b]."""
    return tuple(shape[2:-1] if is_blocked(layout) else shape[2:])


def window_defaults(op: Operation, rank: int) -> dict[str, Any]:
    """strides, dilations and pads (all beginnings, then all ends) for `rank` spatial axes, defaults filled in."""
    a = op.attrs
    out = {"strides": a["strides"] or (1,) * rank, "pads": a["pads"] or (0,) * (2 * rank),
           "dilations": a["dilations"] or (1,) * rank}
    for key, value in out.items():
        want = 2 * rank if key == "pads" else rank
        expect(len(value) == want, "attribute-invalid",
               f"{op.op}: {key} {value} needs {want} entries")
    expect(min(*out["strides"], *out["dilations"], 1) > 0, "attribute-invalid",
           f"{op.op}: strides {out['strides']} and dilations {out['dilations']} must be positive")
    return out


def output_size(op: Operation, extent: Expr, kernel: IntoExpr, attrs: dict[str, Any], axis: int,
                ceil_mode: bool = False) -> Expr:
    """Number of windows along a spatial axis. With ceil_mode a last window may hang over the end, but must begin within
    the tensor or its front padding."""
    rank = len(attrs["strides"])
    s, d = attrs["strides"][axis], attrs["dilations"][axis]
    before, after = attrs["pads"][axis], attrs["pads"][rank + axis]
    free = dim(extent + (before + after) - ((kernel - 1) * d + 1))
    n = as_int(free)
    if n is None:
        return dim((free + (s - 1 if ceil_mode else 0)) // s + 1)
    if n < 0 and not ceil_mode:
        raise UserError("shape-mismatch", f"{op.op}: the window ({kernel} with dilation {d}) is larger than the padded "
                        f"axis {axis} of {show([extent])} + {before} + {after}")
    count = (-(-n // s) if ceil_mode else n // s) + 1
    size = as_int(extent)
    if ceil_mode and size is not None and (count - 1) * s >= size + before:
        count -= 1
    return dim(count)


def windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """Views of every window of [N, C, spatial…]: [N, C, out…, kernel…]."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, x.ndim))
    if any(n < r for n, r in zip(x.shape[2:], reach, strict=True)):  # NumPy's views have a window at least
        count = [max(0, -(-(n - r + 1) // s)) for n, r, s in zip(x.shape[2:], reach, strides, strict=True)]
        return np.empty((*x.shape[:2], *count, *kernel), x.dtype)
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
    pick = tuple(slice(None, None, s) for s in strides)
    return np.asarray(view[(slice(None), slice(None), *pick, *(slice(None, None, d) for d in dilations))])


def spatial_pad(x: Array, pads: Sequence[int], value: Any, extra: Sequence[int] | None = None) -> Array:
    """[N, C, spatial…] with `pads` (beginnings, then ends), and `extra` more at the ends."""
    rank = x.ndim - 2
    more = extra or [0] * rank
    width = [(0, 0), (0, 0)] + [(pads[k], pads[rank + k] + more[k]) for k in range(rank)]
    return np.pad(x, width, constant_values=value)


def operand_block(v: Value) -> int:
    """Channels per block of a blocked activation."""
    return as_int(v.shape[-1]) or 1

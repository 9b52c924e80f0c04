"""Taps of convolutions that read padding alone go: what they add is zero.

In: a graph before layouts are decided, borders in the pads of convolutions. Out: the same graph with smaller windows where
images of known size are small beside what the window spans.

    conv [1, C, 1, H, W], 3×3×3, pads 1        becomes      1×3×3, no pads along the first axis
    conv [1, C, 8, 8], 3×3, dilation 12, pads 12    becomes      1×1
"""
from __future__ import annotations

import numpy as np

from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.loop.ir import as_int


def drop_dead_taps(graph: Graph) -> Graph:
    """Narrow windows to the taps that read an element for one output at least; weights that are no numbers stay."""
    return rewrite(graph, _narrow)


def _narrow(op: Operation, b: GraphBuilder) -> Value | None:
    if op.op != "conv" or op.attrs["layout"] != "NCHW" or op.attrs["fill"]:
        return None
    x, w, *rest = op.inputs
    assert x is not None and w is not None
    if w.data is None:
        return None
    rank, pads = w.rank - 2, list(op.attrs["pads"])
    strides, dilations = op.attrs["strides"] or (1,) * rank, op.attrs["dilations"] or (1,) * rank
    kept, window = w.data, w.type.sizes()[2:]
    for k in range(rank):
        size, out = as_int(x.shape[2 + k]), as_int(op.output.shape[2 + k])
        if size is None or out is None:
            continue
        first, last = _live(window[k], size, out, strides[k], dilations[k], pads[k], pads[rank + k])
        pads[k] -= first * dilations[k]
        pads[rank + k] -= (window[k] - last) * dilations[k]
        kept = kept[(slice(None),) * (2 + k) + (slice(first, last),)]
    if kept.shape == w.data.shape or not np.isfinite(w.data).all():
        return None
    return b.add("conv", [x, b.constant(np.ascontiguousarray(kept), name=w.name), *rest], {**op.attrs, "pads": tuple(pads)},
                 name=op.output.name, loc=op.loc)


def _live(window: int, size: int, out: int, stride: int, dilation: int, before: int, after: int) -> tuple[int, int]:
    """The first tap that is kept and the one behind the last: pads shrink by what goes, and cannot become negative."""
    first, last = 0, window
    while first + 1 < last and (out - 1) * stride + first * dilation < before and (first + 1) * dilation <= before:
        first += 1
    while first + 1 < last and (last - 1) * dilation - before >= size and (window - last + 1) * dilation <= after:
        last -= 1
    return first, last

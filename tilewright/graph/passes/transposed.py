"""Transposed convolutions become convolutions: all phases of the output in one, then put into their places.

    y = conv_transpose(x, w, stride s)     becomes     y = interleave(conv(x, w'), factors s)

With stride s, the outputs at places q * s + r see the inputs around q through every s-th tap of the kernel: a convolution of
stride 1 with ceil(k / s) taps, one for each r. No zeros are multiplied but those that fill k up to a multiple of s. (Shi et
al., "Is the deconvolution layer the same as a convolutional layer?", 2016.)

In: a graph with plain layouts. Out: the same graph without transposed convolutions of one group and dilation 1; where
infinities and NaN shall reach exactly what they reach in the original, those stay whose kernels would be filled up.
"""
from __future__ import annotations

import functools
from math import prod

from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.loop.ir import as_int


def transposed_to_phases(graph: Graph, exact: bool = False) -> Graph:
    """Replace transposed convolutions where their kernels' sizes are known."""
    return rewrite(graph, functools.partial(_phases, exact=exact))


def _phases(op: Operation, b: GraphBuilder, exact: bool) -> Value | None:
    if op.op != "conv_transpose" or op.attrs["group"] != 1 or any(d != 1 for d in op.attrs["dilations"]):
        return None
    x, w = op.inputs[0], op.inputs[1]
    assert x is not None and w is not None
    a, rank = op.attrs, w.rank - 2
    kernel = [as_int(k) for k in w.shape[2:]]
    if not w.is_constant or any(k is None for k in kernel):
        return None
    s = a["strides"]
    if exact and any(k % f for k, f in zip(kernel, s, strict=True) if k is not None):
        return None
    taps = [-(-k // f) for k, f in zip(kernel, s, strict=True) if k is not None]
    first = [min(a["pads"][d] // s[d], taps[d] - 1) for d in range(rank)]  # places q that are not computed at the start
    last = [-(-((kernel[d] or 0) + a["output_padding"][d] - a["pads"][rank + d]) // s[d]) - 1 for d in range(rank)]
    if min(a["pads"]) < 0 or min(last) < 0:
        return None
    pads = [*[t - 1 - q for t, q in zip(taps, first, strict=True)], *last]
    y = b.add("conv", [x, phase_weights(w, s, taps, b)], {"pads": pads}, name=f"{op.output.name}_phases", loc=op.loc)
    starts = [a["pads"][d] - first[d] * s[d] for d in range(rank)]
    if prod(s) == 1:
        bounds = {2 + d: (starts[d], starts[d] + op.output.shape[2 + d], 1) for d in range(rank)}
        return y if y.shape == op.output.shape else b.slice(y, bounds)
    return b.add("interleave", [y], {"factors": s, "starts": starts, "sizes": op.output.shape[2:]}, name=op.output.name,
                 loc=op.loc)


def phase_weights(w: Value, strides: tuple[int, ...], taps: list[int], b: GraphBuilder) -> Value:
    """[C, O, k…] → [phases * O, C, taps…]: tap j of phase r is w at r + s * (taps - 1 - j), zero beyond the kernel."""
    rank = len(taps)
    after = [t * s - (as_int(k) or 0) for t, s, k in zip(taps, strides, w.shape[2:], strict=True)]
    if any(after):
        w = b.add("pad", [w], {"before": [0] * w.rank, "after": [0, 0, *after]})
    w = b.reshape(w, [*w.shape[:2], *[n for t, s in zip(taps, strides, strict=True) for n in (t, s)]])
    w = b.slice(w, {2 + 2 * d: (taps[d] - 1, -taps[d] - 1, -1) for d in range(rank)})
    w = b.add("transpose", [w], {"perm": [*[3 + 2 * d for d in range(rank)], 1, 0, *[2 + 2 * d for d in range(rank)]]})
    return b.reshape(w, [prod(strides) * (as_int(w.shape[rank]) or 0), w.shape[rank + 1], *taps])

"""Convolution and transposed convolution over any number of spatial axes, grouped, plain or channel-blocked.

Weights are logical [O, I/group, kernel…] in every layout; the schedule lays them out. In the blocked form the channel is
two axes, block and lane, in the output and in the reduction, so that every index is affine; channels beyond the logical
number are zeros.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import DType
from tilewright.graph.infer import (
    Shape,
    ceil_div,
    dim,
    expect,
    expect_dtype,
    expect_rank,
    expect_same_dim,
    expect_same_dtype,
    operands,
)
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops import gradients
from tilewright.graph.ops.layout import from_blocked, to_blocked
from tilewright.graph.ops.recipes import accumulator, read_or
from tilewright.graph.ops.window import (
    expect_layout,
    is_blocked,
    operand_block,
    output_size,
    spatial,
    spatial_pad,
    window_defaults,
    windows,
)
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import TRUE, Expr, as_int, const
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis


# ---- inference -------------------------------------------------------------------------------------------------------
def _normalize(op: Operation) -> dict[str, Any]:
    x, w = operands(op, 2)
    a = op.attrs
    in_layout = a["in_layout"] or a["layout"]
    expect_layout(op, a["layout"])
    expect_layout(op, in_layout)
    expect(is_blocked(a["layout"]) or not is_blocked(in_layout), "attribute-invalid",
           "conv: a blocked input gives a blocked output")
    expect_rank(op, w, 3, 100)
    expect_rank(op, x, w.rank + is_blocked(in_layout))
    block = a["block"]
    if is_blocked(a["layout"]) and not block:
        expect(is_blocked(in_layout), "attribute-invalid", "conv: a blocked output of a plain input needs `block`")
        block = operand_block(x)
    return {**window_defaults(op, w.rank - 2), "in_layout": in_layout, "block": block}


def _out_dtype(op: Operation, element: DType) -> DType:
    return op.attrs["out"] or element


def _channels(op: Operation, w_shape: Shape) -> tuple[int, int]:
    """Output and input channels as numbers."""
    o, i = as_int(w_shape[0]), as_int(w_shape[1])
    expect(o is not None and i is not None, "shape-mismatch", "conv: the weight's channels must be numbers")
    return o or 0, (i or 0) * op.attrs["group"]


def _infer(op: Operation) -> Sequence[TensorType]:
    x, w = operands(op, 2)
    a = op.attrs
    expect_dtype(op, x, x.dtype.is_float or x.dtype.is_int, "numbers")
    if not (a["out"] is not None and x.dtype.is_int and w.dtype.is_int):
        expect_same_dtype(op, x, w)
    o, c = _channels(op, w.shape)
    expect(a["group"] > 0 and o % a["group"] == 0, "shape-mismatch",
           f"conv: {o} output channels do not fall into {a['group']} groups")
    if is_blocked(a["in_layout"]):
        b = operand_block(x)
        expect_same_dim(op, x.shape[1], ceil_div(c, b), f"channel blocks of %{x.name} and %{w.name}")
    else:
        expect_same_dim(op, x.shape[1], const(c), f"channels of %{x.name} {x.type} and %{w.name} {w.type} in "
                        f"{a['group']} groups")
    if is_blocked(a["layout"]) and a["group"] > 1 and not (a["group"] == c == o):
        b = a["block"]
        whole = not (o // a["group"]) % b and not (c // a["group"]) % b
        expect(whole and (not is_blocked(a["in_layout"]) or operand_block(x) == b), "shape-mismatch",
               f"conv: groups of {c // a['group']} input and {o // a['group']} output channels are no whole blocks of {b}")
    sizes = tuple(output_size(op, s, w.shape[2 + k], a, k) for k, s in enumerate(spatial(x.shape, a["in_layout"])))
    t = _out_dtype(op, x.dtype)
    if is_blocked(a["layout"]):
        return [TensorType(t, (x.shape[0], ceil_div(o, a["block"]), *sizes, const(a["block"])))]
    return [TensorType(t, (x.shape[0], const(o), *sizes))]


# ---- reference -------------------------------------------------------------------------------------------------------
def _plain_conv(attrs: dict[str, Any], x: Array, w: Array) -> Array:
    group, rank = attrs["group"], x.ndim - 2
    o, i = w.shape[0] // group, w.shape[1]
    view = windows(spatial_pad(x, attrs["pads"], attrs["fill"]), w.shape[2:], attrs["strides"], attrs["dilations"])
    out = np.empty((x.shape[0], w.shape[0], *view.shape[2:2 + rank]), x.dtype)
    summed = [1, *range(2 + rank, 2 + 2 * rank)]
    for g in range(group):
        part = np.tensordot(view[:, g * i:(g + 1) * i], w[g * o:(g + 1) * o], (summed, list(range(1, 2 + rank))))
        out[:, g * o:(g + 1) * o] = np.moveaxis(part, -1, 1)
    return out


def _depthwise(attrs: dict[str, Any], x: Array, w: Array) -> Array:
    rank = x.ndim - 2
    view = windows(spatial_pad(x, attrs["pads"], attrs["fill"]), w.shape[2:], attrs["strides"], attrs["dilations"])
    total = np.zeros(view.shape[:2 + rank], x.dtype)
    for k in np.ndindex(*w.shape[2:]):
        total += view[(..., *k)] * w[(slice(None), 0, *k)].reshape(-1, *(1,) * rank)
    return total


def _widened(attrs: dict[str, Any], x: Array) -> Array:
    if attrs["out"] is not None:
        return x.astype(attrs["out"].numpy())
    return x.astype(np.float32) if x.dtype.kind not in "iu" and x.dtype.itemsize < 4 else x


def _conv(attrs: dict[str, Any], x: Array, w: Array) -> Array:
    to = attrs["out"].numpy() if attrs["out"] is not None else x.dtype
    plain = from_blocked(x, w.shape[1] * attrs["group"]) if is_blocked(attrs["in_layout"]) else x
    depthwise = attrs["group"] == w.shape[0] and w.shape[1] == 1
    y = (_depthwise if depthwise else _plain_conv)(attrs, _widened(attrs, plain), _widened(attrs, w)).astype(to, copy=False)
    return to_blocked(y, attrs["block"]) if is_blocked(attrs["layout"]) else y


# ---- recipe ----------------------------------------------------------------------------------------------------------
def padded(x: Tensor, pads: Sequence[int], layout: str, fill: int = 0) -> Tensor:
    """A stage with `fill` around the spatial axes; `x` itself where nothing is added."""
    rank = len(pads) // 2
    if not any(pads):
        return x
    shape = list(x.shape)
    for k in range(rank):
        shape[2 + k] = dim(shape[2 + k] + (pads[k] + pads[rank + k]))

    def cell(*i: Expr) -> Any:
        at, inside = list(i), TRUE
        for k in range(rank):
            at[2 + k] = i[2 + k] - pads[k]
            for need, cond in ((pads[k], at[2 + k] >= 0), (pads[rank + k], at[2 + k] < x.shape[2 + k])):
                if need:
                    inside = cond if inside is TRUE else inside & cond
        return read_or(inside, x[tuple(at)], fill)
    return compute(tuple(shape), cell, name="conv_pad")


def _finish(op: Operation, total: Tensor, acc: DType) -> Tensor:
    to = op.output.dtype
    return total if acc is to else compute(total.shape, lambda *i: total[i].cast(to), name="conv_cast")


def _compute(op: Operation, x: Tensor, w: Tensor) -> Tensor:
    a = op.attrs
    xp = padded(x, a["pads"], a["in_layout"], a["fill"])
    acc = accumulator(op.output.dtype)
    kernel = [reduce_axis(k, name=f"k{'dhw'[-(len(w.shape) - 2):][n] if len(w.shape) <= 5 else n}")
              for n, k in enumerate(w.shape[2:])]
    ks = [k.var for k in kernel]

    def places(p: Sequence[Expr]) -> list[Expr]:
        return [v * s + k * d for v, s, k, d in zip(p, a["strides"], ks, a["dilations"], strict=True)]
    body = _plain_cell if not is_blocked(a["layout"]) else _blocked_cell
    cell = body(op, xp, w, acc, kernel, places)
    return _finish(op, compute(op.output.shape, cell, name="conv"), acc)


def _plain_cell(op: Operation, x: Tensor, w: Tensor, acc: DType, kernel: list[Any], places: Any) -> Any:
    """out[n, o, p] = sum over (i, k) of x[n, group of o, i, p*stride + k*dilation] * w[o, i, k]."""
    o, c = _channels(op, w.shape)
    g = op.attrs["group"]
    ks = [k.var for k in kernel]
    ic = reduce_axis(w.shape[1], name="ic") if c > g else None
    axes = ([ic] if ic is not None else []) + kernel

    def cell(*i: Expr) -> Any:
        n, oc = i[0], i[1]
        inner = ic.var if ic is not None else const(0)
        first = const(0) if g == 1 else (oc if g == o else oc // (o // g)) * (c // g)
        return tc.sum(x[(n, first + inner, *places(i[2:]))].cast(acc) * w[(oc, inner, *ks)].cast(acc), axis=axes)
    return cell


def _blocked_cell(op: Operation, x: Tensor, w: Tensor, acc: DType, kernel: list[Any], places: Any) -> Any:
    """The same with the output channel as oco * b + oci, and the input channel as ico * b + ici or (plain input) ic."""
    a = op.attrs
    o, c = _channels(op, w.shape)
    g, b = a["group"], a["block"]
    ks = [k.var for k in kernel]
    blocked_in = is_blocked(a["in_layout"])
    bi = (as_int(x.shape[-1]) or 1) if blocked_in else 1
    per_group = c // g
    depthwise = g == c == o
    filled = per_group % bi != 0 and not depthwise  # the last block, with zeros
    uneven = filled and acc.is_float  # and these are not summed: 24 channels are 24 steps, not 32; bytes go in fours

    def weight(oc: Expr, ic: Expr) -> Expr:
        value = w[(oc, ic, *ks)].cast(acc)
        inside: Expr = TRUE
        if o % b:
            inside = oc < o
        if filled and not uneven:
            inside = ic < per_group if inside is TRUE else inside & (ic < per_group)
        return value if inside is TRUE else read_or(inside, value, 0)

    if depthwise:
        def depthwise_cell(*i: Expr) -> Any:
            oc, p = i[1] * b + i[-1], places(i[2:-1])
            if not blocked_in:
                value = x[(i[0], oc, *p)].cast(acc)
                value = read_or(oc < c, value, 0) if c % b else value
            elif bi == b:
                value = x[(i[0], i[1], *p, i[-1])].cast(acc)
            else:
                value = x[(i[0], oc // bi, *p, oc % bi)].cast(acc)
            return tc.sum(value * weight(oc, const(0)), axis=kernel)
        return depthwise_cell

    if uneven:
        ic = reduce_axis(const(per_group), name="ic")

        def uneven_cell(*i: Expr) -> Any:
            oc, p = i[1] * b + i[-1], places(i[2:-1])
            value = x[(i[0], ic.var // bi, *p, ic.var % bi)]
            return tc.sum(value.cast(acc) * weight(oc, ic.var), axis=[*kernel, ic])
        return uneven_cell

    ico = reduce_axis(ceil_div(per_group, bi), name="ico" if blocked_in else "ic")
    ici = reduce_axis(const(bi), name="ici") if blocked_in else None

    def cell(*i: Expr) -> Any:
        oc, p = i[1] * b + i[-1], places(i[2:-1])
        if ici is not None:
            first = ico.var if g == 1 else i[1] // (o // g // b) * (per_group // b) + ico.var
            value, ic = x[(i[0], first, *p, ici.var)], ico.var * bi + ici.var
        else:
            first = ico.var if g == 1 else i[1] // (o // g // b) * per_group + ico.var
            value, ic = x[(i[0], first, *p)], ico.var
        axes = [ico, *kernel] + ([ici] if ici is not None else [])
        return tc.sum(value.cast(acc) * weight(oc, ic), axis=axes)
    return cell


# ---- transposed ------------------------------------------------------------------------------------------------------
def _normalize_transposed(op: Operation) -> dict[str, Any]:
    x, w = operands(op, 2)
    expect_rank(op, w, 3, 100)
    expect_rank(op, x, w.rank)
    rank = w.rank - 2
    extra = op.attrs["output_padding"] or (0,) * rank
    expect(len(extra) == rank, "attribute-invalid", f"conv_transpose: output_padding {extra} needs {rank} entries")
    return {**window_defaults(op, rank), "output_padding": extra}


def _infer_transposed(op: Operation) -> Sequence[TensorType]:
    x, w = operands(op, 2)
    a, rank = op.attrs, w.rank - 2
    expect_dtype(op, x, x.dtype.is_float, "a floating-point type")
    t = expect_same_dtype(op, x, w)
    expect_same_dim(op, x.shape[1], w.shape[0], f"channels of %{x.name} {x.type} and %{w.name} {w.type}")
    c = as_int(w.shape[0])
    expect(c is not None and c % a["group"] == 0, "shape-mismatch", f"conv_transpose: {c} channels in {a['group']} groups")
    sizes = []
    for k in range(rank):
        reach = (w.shape[2 + k] - 1) * a["dilations"][k] + 1
        sizes.append(dim((x.shape[2 + k] - 1) * a["strides"][k] + reach + (a["output_padding"][k] - a["pads"][k]
                                                                           - a["pads"][rank + k])))
        size = as_int(sizes[-1])
        expect(size is None or size >= 0, "shape-mismatch", f"conv_transpose: the pads {a['pads']} crop everything")
    return [TensorType(t, (x.shape[0], dim(w.shape[1] * a["group"]), *sizes))]


def _conv_transpose(attrs: dict[str, Any], x: Array, w: Array) -> Array:
    """Scatters each input element over its window."""
    g, rank = attrs["group"], x.ndim - 2
    s, d, pads, extra = (attrs[k] for k in ("strides", "dilations", "pads", "output_padding"))
    xs, ws = (v.astype(np.float32) if v.dtype.itemsize < 4 else v for v in (x, w))
    i, o = w.shape[0] // g, w.shape[1]
    full = [(x.shape[2 + k] - 1) * s[k] + (w.shape[2 + k] - 1) * d[k] + 1 + max(0, extra[k]) for k in range(rank)]
    out = np.zeros((x.shape[0], g * o, *full), xs.dtype)
    for at in np.ndindex(*w.shape[2:]):
        place = tuple(slice(at[k] * d[k], at[k] * d[k] + (x.shape[2 + k] - 1) * s[k] + 1, s[k]) for k in range(rank))
        for n in range(g):
            part = np.tensordot(xs[:, n * i:(n + 1) * i], ws[(slice(n * i, (n + 1) * i), slice(None), *at)], ([1], [0]))
            out[(slice(None), slice(n * o, (n + 1) * o), *place)] += np.moveaxis(part, -1, 1)
    crop = tuple(slice(max(0, pads[k]), full[k] - pads[rank + k]) for k in range(rank))
    return out[(slice(None), slice(None), *crop)].astype(x.dtype)


def _compute_transposed(op: Operation, x: Tensor, w: Tensor) -> Tensor:
    """The input with stride - 1 zeros between elements and a border, then a convolution with the flipped kernel."""
    a, rank, out = op.attrs, len(w.shape) - 2, op.output.shape
    s, d, pads, g = a["strides"], a["dilations"], a["pads"], a["group"]
    acc = accumulator(x.dtype)
    reach = [dim((w.shape[2 + k] - 1) * d[k]) for k in range(rank)]

    def spread_cell(*i: Expr) -> Expr:
        at, inside = list(i), TRUE
        for k in range(rank):
            t = i[2 + k] - (reach[k] - pads[k])
            at[2 + k] = t // s[k]
            ok = (t >= 0) & (at[2 + k] < x.shape[2 + k])
            if s[k] > 1:
                ok = ok & (t % s[k]).eq(0)
            inside = ok if inside is TRUE else inside & ok
        return read_or(inside, x[tuple(at)], 0)
    spread = compute((*x.shape[:2], *[dim(out[2 + k] + reach[k]) for k in range(rank)]), spread_cell, name="spread")
    per_group, o = (as_int(w.shape[0]) or 0) // g, w.shape[1]
    ic = reduce_axis(const(per_group), name="ic")
    ks = [reduce_axis(n, name=f"k{k}") for k, n in enumerate(w.shape[2:])]

    def cell(*i: Expr) -> Any:
        n, oc = i[0], i[1]
        c = ic.var if g == 1 else oc // o * per_group + ic.var
        at = [i[2 + k] + r.var * d[k] for k, r in enumerate(ks)]
        flipped = [w.shape[2 + k] - 1 - r.var for k, r in enumerate(ks)]
        weight = w[(c, oc if g == 1 else oc % o, *flipped)]
        return tc.sum(spread[(n, c, *at)].cast(acc) * weight.cast(acc), axis=[ic, *ks])
    return _finish(op, compute(out, cell, name="conv_transpose"), acc)


_WINDOW = {"strides": Attr("ints", None), "pads": Attr("ints", None, "all beginnings, then all ends"),
           "dilations": Attr("ints", None), "group": Attr("int", 1)}
RECORDS = (
    OpRecord("conv", "anchor", _infer, _conv, _compute,
             {**_WINDOW, "layout": Attr("str", "NCHW", "of the output: NCHW or NCHWc"),
              "in_layout": Attr("str", None, "of the input; the output's by default"),
              "block": Attr("int", 0, "channels per block of a blocked output; the input's by default"),
              "fill": Attr("int", 0, "what stands around x"),
              "out": Attr("dtype", None, "of an integer convolution: the type it is computed in and has")}, _normalize,
             doc="x [N, C, …] over w [O, C/group, kernel…]; no bias (add it). Narrow floats are accumulated in f32.",
             gradient=gradients.conv),
    OpRecord("conv_transpose", "anchor", _infer_transposed, _conv_transpose, _compute_transposed,
             {**_WINDOW, "output_padding": Attr("ints", None)}, _normalize_transposed,
             doc="The gradient of conv by its input: x [N, C, …] over w [C, O/group, kernel…]."),
)

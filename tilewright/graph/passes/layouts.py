"""Activation layouts: convolutions and what lies between them work on channel blocks (NCHWc), so that vectors run along
channels and no kernel transposes anything.

In: a graph whose spatial operators are all in NCHW. Out: the same graph in which every operator that gains works blocked,
with `to_blocked` and `from_blocked` only where a blocked value meets an operator that needs the plain one.

    conv → relu → conv → flatten      becomes      to_blocked → conv' → relu → conv' → from_blocked → flatten

Greedy and forward: an anchor takes the layout that it prefers; elementwise operators, pads, slices and concatenations
follow the layout in which their operands are at hand. Conversions are made when first needed and shared. Channels beyond
the logical number are zeros in what `to_blocked` and `conv` write and finite elsewhere; nothing reads them into a result.
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilewright.core.dtype import f32, i8, i16, i32, u8
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.ir import Graph, Operation, Value, used_values
from tilewright.graph.ops.layout import to_blocked
from tilewright.graph.passes.match import map_regions, reshaped, splat
from tilewright.graph.registry import Array, record_of
from tilewright.loop.ir import as_int, const
from tilewright.target.target import Target

FIRST_LAYER_CHANNELS = 4
"""A convolution of at most this many channels reads plain NCHW: blocks would be mostly padding."""
WORD = 4
"""Bytes that instructions for products of bytes take from the summed axis at once."""
SMALL = (u8, i8)
PLACE_DEPENDENT = frozenset({"batch_norm", "trilu"})
"""Operators of elementwise classes whose meaning depends on which axis is which."""
FINITE_AT_ZERO = frozenset({
    "add", "sub", "mul", "max", "min", "neg", "abs", "relu", "clip", "leaky_relu", "prelu", "elu", "selu", "celu", "sigmoid",
    "silu", "hard_sigmoid", "hard_swish", "gelu", "softplus", "softsign", "mish", "tanh", "erf", "thresholded_relu",
    "shrink", "floor", "ceil", "round", "trunc", "sin", "cos", "cast"})
"""Operators that give finite numbers for the zeros beyond the last channel; others may work only on whole blocks."""


def blocked_layouts(graph: Graph, target: Target, exact: bool = False) -> Graph:
    """Choose layouts for a target: a block is one vector of f32. `exact`: groups of convolutions are not taken together,
    since an infinity or NaN times the zeros between them would reach the neighbours."""
    block = target.lanes(32)
    if block < 4:
        return graph
    graph = map_regions(graph, lambda region: blocked_layouts(region, target, exact))
    return _Layouts(block, graph, exact).run()


def merged_groups(in_c: int, out_c: int, groups: int, block: int) -> int | None:
    """How many groups of so many channels to take together, so that they are whole blocks on both sides; None if there is no
    such number, or if more products with zeros are made than a vector has lanes."""
    m = math.lcm(block // math.gcd(block, in_c), block // math.gcd(block, out_c))
    return m if groups % m == 0 and m < block else None


def block_diagonal(w: Array, groups: int, merged: int) -> Array:
    """The weights [O, I, …] of a convolution in groups as those of one whose groups are `merged` times as large: zeros
    between the old groups."""
    o, i = w.shape[0] // groups, w.shape[1]
    out = np.zeros((w.shape[0], merged * i, *w.shape[2:]), w.dtype)
    for k in range(groups):
        out[k * o:(k + 1) * o, k % merged * i:(k % merged + 1) * i] = w[k * o:(k + 1) * o]
    return out


class _Layouts:
    """One walk over a graph (not its regions); `blocked` maps a plain value to its blocked twin, `plain` the other way;
    `channels` tells the number of channels of every blocked value."""

    def __init__(self, block: int, graph: Graph, exact: bool) -> None:
        self.block, self.graph, self.exact = block, graph, exact
        self.blocked: dict[Value, Value] = {}
        self.plain: dict[Value, Value] = {}
        self.channels: dict[Value, int] = {}
        self.own = {v for op in graph.operations for v in op.outputs}
        self.captured = {v for op in graph.operations if op.regions for v in used_values(op)}

    def run(self) -> Graph:
        return rewrite(self.graph, self.visit, finish=lambda outputs, b: [self.as_plain(v, b) for v in outputs])

    # ---- operands ----------------------------------------------------------------------------------------------------
    def as_plain(self, v: Value, b: GraphBuilder) -> Value:
        """The value in NCHW."""
        if v not in self.channels:
            return v
        if v not in self.plain:
            c = self.channels[v]
            if all(as_int(d) == 1 for d in v.shape[2:-1]) and c % self.block == 0:
                self.plain[v] = b.reshape(v, (v.shape[0], c, *v.shape[2:-1]), v.name)
            else:
                self.plain[v] = b.add("from_blocked", [v], {"channels": c}, name=f"{v.name}_plain")
        return self.plain[v]

    def as_blocked(self, v: Value, b: GraphBuilder) -> Value:
        """The value in NCHWc; constants are converted now."""
        if v in self.channels:
            return v
        if v not in self.blocked:
            c = as_int(v.shape[1]) or 0
            if v.data is not None:
                twin = b.constant(to_blocked(v.data, self.block), name=f"{v.name}_blocked")
            elif c % self.block == 0 and all(as_int(d) == 1 for d in v.shape[2:]):
                twin = b.reshape(v, (v.shape[0], c // self.block, *v.shape[2:], self.block), f"{v.name}_blocked")
            else:
                twin = b.add("to_blocked", [v], {"block": self.block}, name=f"{v.name}_blocked")
            self.blocked[v] = self.mark(twin, c)
        return self.blocked[v]

    def mark(self, v: Value, channels: int) -> Value:
        self.channels[v] = channels
        return v

    def made(self, op: Operation, inputs: list[Value | None], attrs: dict[str, Any], channels: int,
             b: GraphBuilder) -> Value:
        """A blocked operation in place of `op`."""
        return self.mark(b.add(op.op, inputs, attrs, name=op.output.name, loc=op.loc), channels)

    # ---- operations --------------------------------------------------------------------------------------------------
    def visit(self, op: Operation, b: GraphBuilder) -> Value | list[Value] | None:
        if not op.outputs or op.outputs[0] not in self.own:
            return None  # inside a region, where this graph's values are plain
        rule = {"conv": self.conv, "max_pool": self.pool, "avg_pool": self.pool, "pad": self.pad, "slice": self.slice,
                "concat": self.concat, "resize": self.resize, "interleave": self.interleave,
                "reduce_mean": self.reduce, "reduce_max": self.reduce,
                "reduce_sum": self.reduce, "reduce_min": self.reduce}.get(op.op)
        if rule is None and record_of(op).fusion in ("elementwise", "broadcast") and op.op not in PLACE_DEPENDENT:
            rule = self.elementwise
        new = None if rule is None or len(op.outputs) != 1 else rule(op, b)
        if new is not None:
            if op.output in self.captured and new in self.channels:
                plain = self.as_plain(new, b)  # regions read it plain
                self.blocked[plain] = new
                return plain
            return new
        if not any(v in self.channels for v in op.inputs if v is not None):
            return None
        inputs = [None if v is None else self.as_plain(v, b) for v in op.inputs]
        return list(b.add_all(op.op, inputs, op.attrs, name=op.outputs[0].name, loc=op.loc, regions=op.regions))

    def conv(self, op: Operation, b: GraphBuilder) -> Value | None:
        """A convolution over one to three axes whose groups are whole blocks of channels, or become so together, or that is
        depthwise."""
        x, w = op.inputs[0], op.inputs[1]
        assert x is not None and w is not None
        if w.rank not in (3, 4, 5) or not w.is_constant or not _blockable(op):
            return None
        out_c, group = as_int(w.shape[0]) or 0, op.attrs["group"]
        in_c = (as_int(w.shape[1]) or 0) * group
        depthwise = group == in_c == out_c
        if group > 1 and not depthwise:
            merged = merged_groups(in_c // group, out_c // group, group, self.block)
            if merged is None or (self.exact and merged > 1):
                return None
            if merged > 1:
                assert w.data is not None
                w, group = b.constant(block_diagonal(w.data, group, merged), w.name), group // merged
        if out_c < self.block // 2:
            return None
        if not x.dtype.is_float:
            return self.conv_of_bytes(op, x, w, group, b)
        plain = in_c <= FIRST_LAYER_CHANNELS and group == 1 and x not in self.channels and x not in self.blocked
        src = x if plain else self.as_blocked(x, b)
        attrs = {**op.attrs, "group": group, "layout": "NCHWc", "in_layout": "NCHW" if plain else "NCHWc",
                 "block": self.block}
        return self.made(op, [src, w], attrs, out_c, b)

    def conv_of_bytes(self, op: Operation, x: Value, w: Value, group: int, b: GraphBuilder) -> Value:
        """The weights get the zeros of the channels that fill blocks, so that no instruction for several products meets a
        condition; few channels of an operand that is not blocked yet fill words alone."""
        out_c, in_c = as_int(w.shape[0]) or 0, (as_int(w.shape[1]) or 0) * group
        words = group == 1 and in_c < self.block and self.at_hand(x) is None
        wide = -(-in_c // WORD) * WORD if words else self.block
        assert w.data is not None
        fill = [(0, -out_c % self.block), (0, -in_c % wide if group == 1 else 0), *[(0, 0)] * (w.rank - 2)]
        full = b.constant(np.pad(w.data, fill), w.name) if any(n for _, n in fill) else w
        src = b.add("to_blocked", [x], {"block": wide}, name=f"{x.name}_words") if words else self.as_blocked(x, b)
        attrs = {**op.attrs, "group": group if group == 1 or group < out_c else group + fill[0][1], "layout": "NCHWc",
                 "in_layout": "NCHWc", "block": self.block}
        return self.made(op, [src, full], attrs, out_c, b)

    def pool(self, op: Operation, b: GraphBuilder) -> Value | None:
        x = self.at_hand(op.inputs[0])
        if x is None:
            return None
        return self.made(op, [x], {**op.attrs, "layout": "NCHWc"}, self.channels[x], b)

    def pad(self, op: Operation, b: GraphBuilder) -> Value | None:
        x = self.at_hand(op.inputs[0])
        before, after = op.attrs["before"], op.attrs["after"]
        if x is None or any(as_int(d) != 0 for d in (*before[:2], *after[:2])):
            return None
        return self.made(op, [x], {**op.attrs, "before": (*before, 0), "after": (*after, 0)}, self.channels[x], b)

    def slice(self, op: Operation, b: GraphBuilder) -> Value | None:
        """Along other axes than the channels, or of whole blocks of them."""
        x, a = self.at_hand(op.inputs[0]), op.attrs
        if x is None:
            return None
        start, size, step = as_int(a["starts"][1]), as_int(a["sizes"][1]), a["steps"][1]
        if step != 1 or start is None or size is None or start % self.block:
            return None
        if size % self.block and start + size != self.channels[x]:
            return None
        blocks = -(-size // self.block)
        attrs = {"starts": (a["starts"][0], start // self.block, *a["starts"][2:], 0),
                 "sizes": (a["sizes"][0], blocks, *a["sizes"][2:], self.block), "steps": (*a["steps"], 1)}
        return self.made(op, [x], attrs, size, b)

    def concat(self, op: Operation, b: GraphBuilder) -> Value | None:
        """Along the channels if every operand but the last fills its blocks; along spatial axes always."""
        xs = [v for v in op.inputs if v is not None]
        axis = op.attrs["axis"]
        if not any(self.at_hand(v) for v in xs) or xs[0].dtype not in (f32, *SMALL):
            return None
        counts = [self.channels[v] if v in self.channels else as_int(v.shape[1]) or 1 for v in xs]
        if axis == 1 and any(c % self.block for c in counts[:-1]):
            return None
        channels = sum(counts) if axis == 1 else counts[0]
        return self.made(op, [self.as_blocked(v, b) for v in xs], {"axis": axis}, channels, b)

    def resize(self, op: Operation, b: GraphBuilder) -> Value | None:
        x, a = self.at_hand(op.inputs[0]), op.attrs
        if x is None or as_int(a["sizes"][1]) != self.channels[x]:
            return None
        sizes = (a["sizes"][0], x.shape[1], *a["sizes"][2:], const(self.block))
        scales = None if a["scales"] is None else (*a["scales"], 1.0)
        return self.made(op, [x], {**a, "sizes": sizes, "scales": scales}, self.channels[x], b)

    def interleave(self, op: Operation, b: GraphBuilder) -> Value | None:
        """If each phase is whole blocks of channels."""
        x, channels = self.at_hand(op.inputs[0]), as_int(op.output.shape[1]) or 0
        if x is None or channels % self.block:
            return None
        return self.made(op, [x], {**op.attrs, "layout": "NCHWc"}, channels, b)

    def reduce(self, op: Operation, b: GraphBuilder) -> Value | None:
        """Over spatial axes: the same axes of the blocked tensor."""
        x, axes = self.at_hand(op.inputs[0]), op.attrs["axes"]
        if x is None or not axes or any(k < 2 for k in axes):
            return None
        y = self.made(op, [x], {**op.attrs, "keepdims": True}, self.channels[x], b)
        return y if op.attrs["keepdims"] else b.reshape(self.as_plain(y, b), op.output.shape, op.output.name)

    def at_hand(self, v: Value | None) -> Value | None:
        """The blocked form of a value, if there is one already."""
        return v if v in self.channels else self.blocked.get(v) if v is not None else None

    def elementwise(self, op: Operation, b: GraphBuilder) -> Value | None:
        """Blocked if some operand is, and every other has the same channels, or one."""
        owner = next((self.at_hand(v) for v in op.inputs if self.at_hand(v) is not None), None)
        if owner is None or not (op.output.dtype.is_float or op.output.dtype in (*SMALL, i32)):
            return None
        channels, rank = self.channels[owner], owner.rank - 1
        if op.output.rank != rank or (channels % self.block and not _finite_at_zero(op)):
            return None
        new: list[Value | None] = []
        for v in op.inputs:
            follower = v if v is None or v in self.channels else self.follow(v, channels, rank, b)
            if v is not None and (follower is None or self.channels.get(follower, channels) != channels):
                return None
            new.append(follower)
        return self.made(op, new, op.attrs, channels, b)

    def follow(self, v: Value, channels: int, rank: int, b: GraphBuilder) -> Value | None:
        """A plain operand of an elementwise operation, to broadcast against blocked ones whose plain rank is `rank`."""
        if v.rank == 0:
            return v
        if v.rank > rank:
            return None
        shape = (*[const(1)] * (rank - v.rank), *v.shape)
        if as_int(shape[1]) == 1:
            return reshaped(v, (*shape, const(1)), b)
        if as_int(shape[1]) != channels:
            return None
        return self.as_blocked(v if v.rank == rank else reshaped(v, shape, b), b)


def _blockable(op: Operation) -> bool:
    """Whether a convolution is one of f32, or one of bytes that is summed in i32."""
    x, w, y = op.inputs[0], op.inputs[1], op.output
    assert x is not None and w is not None
    return x.dtype is w.dtype is y.dtype is f32 or x.dtype in SMALL and w.dtype in (*SMALL, i16) and y.dtype is i32


def _finite_at_zero(op: Operation) -> bool:
    if op.op == "div":
        by = splat(op.inputs[1])
        return by is not None and by != 0 and op.inputs[1].rank == 0  # type: ignore[union-attr]
    return op.op in FINITE_AT_ZERO

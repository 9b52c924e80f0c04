"""Activation layouts: convolutions and what lies between them work on channel blocks (NCHWc), so that vectors run along
channels and no kernel transposes anything.

In: a graph whose spatial operators are all in NCHW. Out: the same graph in which every operator that gains works blocked,
with `to_blocked` and `from_blocked` only where a blocked value meets an operator that needs the plain one.

    conv → relu → conv → flatten      becomes      to_blocked → conv' → relu → conv' → from_blocked → flatten

Greedy and forward: an anchor takes the layout that it prefers; elementwise operators, pads and concatenations follow the
layout in which their operands are at hand. Conversions are made when first needed and shared.
"""
from __future__ import annotations

import numpy as np

from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.ops.layout import to_blocked
from tilewright.graph.registry import record_of
from tilewright.loop.ir import as_int
from tilewright.target.target import Target

FIRST_LAYER_CHANNELS = 4
"""A convolution of at most this many channels reads plain NCHW: blocks would be mostly padding."""


def blocked_layouts(graph: Graph, target: Target) -> Graph:
    """Choose layouts for a target: a block is one vector of f32."""
    block = target.lanes(32)
    if block < 4:
        return graph
    return _Layouts(block).run(graph)


class _Layouts:
    """One walk over the graph; `blocked` maps a plain value to its blocked twin, `plain` the other way."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.blocked: dict[Value, Value] = {}
        self.plain: dict[Value, Value] = {}
        self.channels: dict[Value, int] = {}

    def run(self, graph: Graph) -> Graph:
        return rewrite(graph, self.visit, finish=self.finish)

    def finish(self, outputs: list[Value], b: GraphBuilder) -> list[Value]:
        return [self.as_plain(v, b) for v in outputs]

    # ---- operands ------------------------------------------------------------------------------------------------------
    def as_plain(self, v: Value, b: GraphBuilder) -> Value:
        """The value in NCHW."""
        if v not in self.channels:
            return v
        if v not in self.plain:
            c = self.channels[v]
            if all(as_int(d) == 1 for d in v.shape[2:-1]) and c % self.block == 0:
                shape = (v.shape[0], c, *v.shape[2:-1])
                self.plain[v] = b.add("reshape", [v], {"shape": shape}, name=v.name)
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
            else:
                twin = b.add("to_blocked", [v], {"block": self.block}, name=f"{v.name}_blocked")
            self.blocked[v] = twin
            self.channels[twin] = c
        return self.blocked[v]

    def mark(self, v: Value, channels: int) -> Value:
        self.channels[v] = channels
        return v

    # ---- operations ----------------------------------------------------------------------------------------------------
    def visit(self, op: Operation, b: GraphBuilder) -> Value | list[Value] | None:
        rule = {"conv": self.conv, "max_pool": self.pool, "avg_pool": self.pool, "pad": self.pad,
                "concat": self.concat, "resize": self.resize, "reduce_mean": self.reduce, "reduce_max": self.reduce}.get(op.op)
        if rule is not None:
            new = rule(op, b)
            if new is not None:
                return new
        elif record_of(op).fusion in ("elementwise", "broadcast") and len(op.outputs) == 1:
            new = self.elementwise(op, b)
            if new is not None:
                return new
        if not any(v in self.channels for v in op.inputs if v is not None):
            return None
        inputs = [None if v is None else self.as_plain(v, b) for v in op.inputs]
        out: Value | list[Value] = b.again(op, inputs)
        return out

    def conv(self, op: Operation, b: GraphBuilder) -> Value | None:
        """A 2-D convolution whose group has whole blocks of channels, or that is depthwise."""
        x, w = op.inputs[0], op.inputs[1]
        assert x is not None and w is not None
        if w.rank != 4 or not w.is_constant or x.dtype.name != "f32":
            return None
        out_c, group = as_int(w.shape[0]) or 0, op.attrs["group"]
        in_c = (as_int(w.shape[1]) or 0) * group
        depthwise = group == in_c == out_c
        if group > 1 and not depthwise and (in_c // group % self.block or out_c // group % self.block):
            return None
        if out_c < self.block // 2:
            return None
        attrs = {**op.attrs, "layout": "NCHWc", "in_layout": "NCHWc", "block": self.block}
        if in_c <= FIRST_LAYER_CHANNELS and group == 1 and x not in self.channels:
            src, attrs["in_layout"] = x, "NCHW"
        else:
            src = self.as_blocked(x, b)
        src, attrs["pads"] = self.padded(src, op.attrs["pads"], attrs["in_layout"] == "NCHWc", 0.0, b)
        return self.mark(b.add("conv", [src, w], attrs, name=op.output.name, loc=op.loc), out_c)

    def padded(self, x: Value, pads: tuple[int, ...], blocked: bool, value: float,
               b: GraphBuilder) -> tuple[Value, tuple[int, ...]]:
        """Make a convolution's or pooling's border an operation of its own, which the producer's kernel will absorb."""
        if not any(pads):
            return x, pads
        k = len(pads) // 2
        tail = (0,) if blocked else ()
        c = self.channels.get(x)
        y = b.add("pad", [x], {"before": (0, 0, *pads[:k], *tail), "after": (0, 0, *pads[k:], *tail), "value": value},
                  name=f"{x.name}_padded")
        if c is not None:
            self.channels[y] = c
        return y, (0,) * len(pads)

    def pool(self, op: Operation, b: GraphBuilder) -> Value | None:
        x = op.inputs[0]
        assert x is not None
        if x not in self.channels or len(op.outputs) != 1:
            return None
        return self.mark(b.add(op.op, [x], {**op.attrs, "layout": "NCHWc"}, name=op.output.name, loc=op.loc),
                         self.channels[x])

    def pad(self, op: Operation, b: GraphBuilder) -> Value | None:
        x = op.inputs[0]
        assert x is not None
        before, after = op.attrs["before"], op.attrs["after"]
        if x not in self.channels or before[0] or after[0] or before[1] or after[1] or op.attrs["mode"] != "constant":
            return None
        attrs = {**op.attrs, "before": (*before, 0), "after": (*after, 0)}
        return self.mark(b.add("pad", [x], attrs, name=op.output.name, loc=op.loc), self.channels[x])

    def concat(self, op: Operation, b: GraphBuilder) -> Value | None:
        xs = [v for v in op.inputs if v is not None]
        if not any(v in self.channels for v in xs) or op.attrs["axis"] != 1 or xs[0].dtype.name != "f32":
            return None
        counts = [self.channels[v] if v in self.channels else as_int(v.shape[1]) or 1 for v in xs]
        if any(c % self.block for c in counts):
            return None
        return self.mark(b.add("concat", [self.as_blocked(v, b) for v in xs], {"axis": 1}, name=op.output.name, loc=op.loc),
                         sum(counts))

    def resize(self, op: Operation, b: GraphBuilder) -> Value | None:
        """Along spatial axes only: the same axes of the blocked tensor."""
        x = op.inputs[0]
        if x is None or x not in self.channels:
            return None
        sizes, scales = op.attrs["sizes"], op.attrs["scales"]
        if sizes[0] != x.shape[0] or as_int(sizes[1]) != self.channels[x]:
            return None
        if scales is not None and scales[:2] != (1.0, 1.0):
            return None
        attrs = {**op.attrs, "sizes": (*x.shape[:2], *sizes[2:], x.shape[-1]),
                 "scales": None if scales is None else (*scales, 1.0)}
        return self.mark(b.add("resize", [x], attrs, name=op.output.name, loc=op.loc), self.channels[x])

    def reduce(self, op: Operation, b: GraphBuilder) -> Value | None:
        """Over the spatial axes, keeping them as ones: the same axes of the blocked tensor."""
        x = op.inputs[0]
        if x not in self.channels or not op.attrs["keepdims"] or x is None:
            return None
        rank = x.rank - 1
        axes = tuple(sorted(a % rank for a in op.attrs["axes"]))
        if axes != tuple(range(2, rank)):
            return None
        return self.mark(b.add(op.op, [x], {**op.attrs, "axes": axes}, name=op.output.name, loc=op.loc), self.channels[x])

    def elementwise(self, op: Operation, b: GraphBuilder) -> Value | None:
        """Blocked if some operand is, and every other is a scalar, or has the same channels, or one channel."""
        owner = next((v for v in op.inputs if v in self.channels), None)
        if owner is None:
            return None
        channels, rank = self.channels[owner], owner.rank - 1
        new: list[Value | None] = []
        for v in op.inputs:
            if v is None or v in self.channels:
                if v is not None and self.channels[v] != channels:
                    return None
                new.append(v)
            elif v.rank == 0 or all(as_int(d) == 1 for d in v.shape):
                new.append(v if v.rank == 0 else self.flat_scalar(v, b))
            elif v.rank == rank and as_int(v.shape[1]) == channels:
                new.append(self.as_blocked(v, b))
            elif v.rank == rank and as_int(v.shape[1]) == 1:
                new.append(b.add("reshape", [v], {"shape": (*v.shape, 1)}, name=v.name))
            elif v.rank == rank - 1 and as_int(v.shape[0]) == channels and v.data is not None:
                new.append(self.as_blocked(b.constant(v.data[np.newaxis], name=v.name), b))
            else:
                return None
        if all(v is None or self.channels.get(v) != channels for v in new):
            return None
        return self.mark(b.add(op.op, new, op.attrs, name=op.output.name, loc=op.loc), channels)

    def flat_scalar(self, v: Value, b: GraphBuilder) -> Value:
        """One element, whatever its rank, as a scalar."""
        if v.data is not None:
            return b.constant(v.data.reshape(()), name=v.name)
        return b.add("reshape", [v], {"shape": ()}, name=v.name)

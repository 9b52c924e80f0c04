"""Halos: the border that a convolution or pooling reads around its operand is written by the operand's producer.

In: a graph in which layouts are decided; convolutions and poolings have `pads`, or read an explicit `pad`. Out: the same
graph in which the value with the widest border is what is stored, and everybody reads that one:

    v = relu(…)                         v = relu(…)
    a = conv(v, pads 1)                 p = pad(v, 1)        joins the kernel of v (`fuse.py`)
    b = add(v, …)               →       a = conv(p)
                                        b = add(slice(p), …) a view, folded into the loads

So border kernels vanish. A border is only moved to a producer if every other reader can read through the view; else, and
for the graph's inputs, the border is one operation of its own that all readers of the border share.
Max pooling pads with -inf (integers: with the least); where the operand cannot be negative and every window holds an
element, zeros do as well.
"""
from __future__ import annotations

from dataclasses import dataclass

from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.ops.window import is_blocked
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.fuse import ALIASES, can_fold_view
from tilewright.graph.passes.match import map_regions
from tilewright.graph.passes.ranges import non_negative
from tilewright.graph.registry import record_of
from tilewright.loop.ir import as_int

Border = tuple[tuple[int, int], ...]
"""Elements before and after each axis."""
NO_KERNEL = ALIASES | {"slice", "transpose", "expand"}


@dataclass(frozen=True)
class Need:
    """The border that one operation reads around its first operand, and the value it must hold."""
    border: Border
    fill: float | int


def share_borders(graph: Graph) -> Graph:
    """Let producers write the borders that convolutions and poolings read."""
    graph = map_regions(graph, share_borders)
    return remove_dead(_Borders(graph).run())


class _Borders:
    """One walk over a graph. `needs` are the borders that operations read, by their result; `plans` the border that is
    made of each value that somebody reads with one, and whether its producer makes it; `made` what has been made."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers, self.users = graph.producers(), graph.users()
        self.outputs = set(graph.outputs)
        self.needs: dict[Value, Need] = {}
        self.source: dict[Value, Value] = {}
        for op in graph.operations:
            need = self.need(op)
            if need is not None and op.inputs[0] is not None:
                self.needs[op.output], self.source[op.output] = need, op.inputs[0]
        self.plans = {x: self.plan(x) for x in dict.fromkeys(self.source.values())}
        self.made: dict[Value, Value] = {}

    def run(self) -> Graph:
        return rewrite(self.graph, self.visit)

    # ---- planning ----------------------------------------------------------------------------------------------------
    def need(self, op: Operation) -> Need | None:
        """The border that an operation reads around its first operand, if it can be moved."""
        x = op.inputs[0] if op.inputs else None
        if x is None or len(op.outputs) != 1 or x.is_constant:
            return None
        if op.op == "pad":
            amounts = [(as_int(b), as_int(a)) for b, a in zip(op.attrs["before"], op.attrs["after"], strict=True)]
            if op.attrs["mode"] != "constant" or any(n is None or n < 0 for pair in amounts for n in pair):
                return None
            return Need(tuple([(b or 0, a or 0) for b, a in amounts]), op.attrs["value"])
        if op.op not in ("conv", "max_pool", "avg_pool") or not any(op.attrs["pads"]) or min(op.attrs["pads"]) < 0:
            return None
        pads, rank = op.attrs["pads"], len(op.attrs["pads"]) // 2
        tail = ((0, 0),) if is_blocked(op.attrs["in_layout"] if op.op == "conv" else op.attrs["layout"]) else ()
        border: Border = ((0, 0), (0, 0), *[(pads[k], pads[rank + k]) for k in range(rank)], *tail)
        if op.op == "conv":
            return Need(border, op.attrs["fill"])
        if op.attrs["ceil_mode"] or (op.op == "avg_pool" and not op.attrs["count_include_pad"]):
            return None
        if op.op == "avg_pool" or (self.holds_an_element(op) and non_negative(x, self.producers)):
            return Need(border, 0)
        if x.dtype.is_int:
            return Need(border, x.dtype.range()[0])
        return Need(border, float("-inf")) if x.dtype.is_float else None

    def holds_an_element(self, op: Operation) -> bool:
        """Whether no window of a pooling lies in the border alone."""
        kernel, pads = op.attrs["kernel"], op.attrs["pads"]
        return all(d == 1 for d in op.attrs["dilations"]) and all(
            max(pads[k], pads[len(kernel) + k]) < n for k, n in enumerate(kernel))

    def plan(self, x: Value) -> Plan:
        """Which border is made of `x`."""
        readers = self.users[x]
        wanted = [self.needs[r.output] for r in readers if len(r.outputs) == 1 and self.source.get(r.output) is x]
        fills = [_key(n.fill) for n in wanted]
        fill = next(n.fill for n in wanted if fills.count(_key(n.fill)) == max(map(fills.count, fills)))
        by_producer = self.can_absorb(x) and all(can_fold_view(r) for r in readers)
        if not by_producer:
            wanted = [self.needs[r.output] for r in readers if r.op == "conv" and self.source.get(r.output) is x]
            fill = wanted[0].fill if wanted else 0
        same = [n.border for n in wanted if _key(n.fill) == _key(fill)]
        if not same:
            return Plan(None, by_producer)
        widest = tuple([(max(b[k][0] for b in same), max(b[k][1] for b in same)) for k in range(x.rank)])
        return Plan(Need(widest, fill), by_producer)

    def can_absorb(self, x: Value) -> bool:
        """Whether the operation that makes `x` can write a border around it."""
        op = self.producers.get(x)
        if op is None or x in self.outputs or len(op.outputs) != 1 or op.op in NO_KERNEL or op.op == "pad":
            return False
        return record_of(op).fusion in ("anchor", "elementwise", "broadcast") or op.op == "concat"

    # ---- rewriting ---------------------------------------------------------------------------------------------------
    def visit(self, op: Operation, b: GraphBuilder) -> Value | None:
        if len(op.outputs) != 1 or op.output not in self.producers:
            return None  # several results, or inside a region
        old = op.output
        new = self.with_border_given(op, b) if old in self.needs else None
        plan = self.plans.get(old)
        if plan is None or plan.need is None or not plan.by_producer:
            return new
        if new is None:
            b.operations.append(op)
            new = old
        self.made[old] = wide = _pad(new, plan.need, b)
        return _cut(wide, plan.need.border, ((0, 0),) * old.rank, b)

    def with_border_given(self, op: Operation, b: GraphBuilder) -> Value | None:
        """The operation on an operand that has its border already; None if that is not planned."""
        x, need = self.source[op.output], self.needs[op.output]
        plan = self.plans[x]
        if plan.need is None or _key(plan.need.fill) != _key(need.fill) or (op.op != "conv" and not plan.by_producer):
            return None
        if x not in self.made:
            assert op.inputs[0] is not None
            self.made[x] = _pad(op.inputs[0], plan.need, b)
        given = _cut(self.made[x], plan.need.border, need.border, b)
        if op.op == "pad":
            return given
        pads = (0,) * len(op.attrs["pads"])
        return b.add(op.op, [given, *op.inputs[1:]], {**op.attrs, "pads": pads}, name=op.output.name, loc=op.loc)


@dataclass(frozen=True)
class Plan:
    """The border that is made of a value (None: none is), and whether the value's producer makes it."""
    need: Need | None
    by_producer: bool


def _key(fill: float | int) -> float:
    """Fill values that are the same number."""
    return float(fill)


def _pad(x: Value, need: Need, b: GraphBuilder) -> Value:
    attrs = {"before": [p for p, _ in need.border], "after": [q for _, q in need.border], "value": need.fill}
    return b.add("pad", [x], attrs, name=f"{x.name}_bordered")


def _cut(wide: Value, has: Border, wants: Border, b: GraphBuilder) -> Value:
    """The value with a smaller border, as a view of the one with a wider border."""
    if has == wants:
        return wide
    starts = [h[0] - w[0] for h, w in zip(has, wants, strict=True)]
    shape = [d - (h[0] - w[0] + h[1] - w[1]) for d, h, w in zip(wide.shape, has, wants, strict=True)]
    return b.add("slice", [wide], {"starts": starts, "sizes": shape}, name=f"{wide.name}_inner")

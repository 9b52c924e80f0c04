"""Operator fusion: sorts a graph's operations into groups, each of which becomes one kernel.

In: a Graph after all rewrites. Out: the list of `Group`s in an order that can be executed.

- An anchor (matmul, convolution, …), a reduction or an elementwise operation opens a group.
- Its *epilogue*: elementwise and broadcast operations, a pad, a layout change or a transpose that keeps the innermost
  axis join the group that makes their main operand, if nobody else reads that operand.
- *Prologues*: views (transpose, slice, expand) are repeated inside every group that reads them, as index arithmetic in its
  loads. A reshape of something in memory is an alias: no kernel at all (`graph/plan.py`).
- What only computes shapes has been folded before; what is left of it runs like anything else.
"""
from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.graph.ir import Graph, Operation, Value, used_values
from tilewright.graph.registry import record_of

ALIASES = frozenset({"reshape", "identity"})
CONTROL = frozenset({"if_", "loop", "scan"})
STRUCTURE = frozenset({"pad", "to_blocked", "from_blocked", "transpose"})


@dataclass
class Group:
    """Operations that become one kernel; `inputs` and `outputs` are the values that cross its border, in order of use."""
    operations: list[Operation]
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """"alias" (no kernel), "control" (regions), or "kernel"."""
        first = self.operations[0].op
        return "control" if first in CONTROL else "alias" if first in ALIASES and len(self.operations) == 1 else "kernel"

    @property
    def anchor(self) -> Operation:
        """The heaviest operation: an anchor, else a reduction, else the first."""
        order = {"anchor": 0, "reduction": 1}
        return min(self.operations, key=lambda o: order.get(record_of(o).fusion, 2))


def fuse(graph: Graph) -> list[Group]:
    """Sort all operations of a graph (not of its regions) into groups."""
    users = graph.users()
    outputs = set(graph.outputs)
    folded = _folded_views(graph, users, outputs)
    group_of: dict[Value, Group] = {}
    order: list[Group] = []
    for op in graph.operations:
        if op.output in folded if len(op.outputs) == 1 else False:
            continue
        home = _home(op, users, outputs, group_of)
        if home is None:
            home = Group([op])
        else:
            home.operations.append(op)
            order.remove(home)
        order.append(home)  # a group runs where its last member stands: all its operands exist by then
        for v in op.outputs:
            group_of[v] = home
    producers = graph.producers()
    for g in order:
        _close(g, folded, producers, users, outputs)
    return order


def _folded_views(graph: Graph, users: dict[Value, list[Operation]], outputs: set[Value]) -> set[Value]:
    """Values of views that every reader can fold into its loads, so that they are never stored."""
    producers = graph.producers()
    out: set[Value] = set()
    for op in graph.operations:
        if record_of(op).fusion != "view" or op.op in ALIASES or op.output in outputs:
            continue
        if _joins_epilogue(op, producers, users, outputs):
            continue
        readers = users.get(op.output, [])
        if readers and all(_can_fold_view(r) for r in readers):
            out.add(op.output)
    return out


def _can_fold_view(reader: Operation) -> bool:
    return reader.op not in ALIASES and reader.op not in CONTROL and record_of(reader).fusion != "opaque"


def _joins_epilogue(op: Operation, producers: dict[Value, Operation], users: dict[Value, list[Operation]],
                    outputs: set[Value]) -> bool:
    """Whether a transpose should be written by its producer rather than read through by its readers."""
    if op.op != "transpose" or op.attrs["perm"][-1] != len(op.attrs["perm"]) - 1:
        return False
    src = op.inputs[0]
    if src is None or src in outputs or len(users.get(src, [])) != 1 or src not in producers:
        return False
    return record_of(producers[src]).fusion in ("anchor", "elementwise", "broadcast")


def _home(op: Operation, users: dict[Value, list[Operation]], outputs: set[Value],
          group_of: dict[Value, Group]) -> Group | None:
    """The group whose epilogue `op` joins, the latest one if there are several."""
    fusion = record_of(op).fusion
    if fusion not in ("elementwise", "broadcast") and op.op not in STRUCTURE:
        return None
    if len(op.outputs) != 1 or op.op in CONTROL:
        return None
    best: Group | None = None
    for v in op.inputs:
        if v is None or v not in group_of or v in outputs or len(users[v]) != 1:
            continue
        g = group_of[v]
        if g.kind != "kernel" or record_of(g.operations[-1]).fusion == "opaque" or v is not g.operations[-1].outputs[0]:
            continue
        if len(g.operations[-1].outputs) != 1 or g.operations[-1].op in STRUCTURE:
            continue  # after a border or a permutation the kernel ends: its store is final
        if op.op not in STRUCTURE and v.shape != op.output.shape:
            continue
        if op.op in STRUCTURE and record_of(g.anchor).fusion in ("reduction", "injective", "view"):
            continue
        best = g
    return best


def _close(g: Group, folded: set[Value], producers: dict[Value, Operation], users: dict[Value, list[Operation]],
           outputs: set[Value]) -> None:
    """Add the folded views that a group reads through, then find what crosses its border."""
    need: list[Operation] = []
    stack = [v for op in g.operations for v in used_values(op)]
    while stack:
        v = stack.pop()
        if v in folded and producers[v] not in need:
            need.append(producers[v])
            stack.extend(used_values(producers[v]))
    if need:
        position = {id(op): k for k, op in enumerate(producers[v] for v in producers)}
        need.sort(key=lambda op: position[id(op)])
        g.operations = need + g.operations
    inside = {v for op in g.operations for v in op.outputs}
    seen: dict[Value, None] = {}
    for op in g.operations:
        for v in used_values(op):
            if v not in inside:
                seen.setdefault(v)
    g.inputs = list(seen)
    members = {id(op) for op in g.operations}
    g.outputs = [v for op in g.operations for v in op.outputs
                 if v not in folded and (v in outputs or any(id(u) not in members for u in users.get(v, ())))]

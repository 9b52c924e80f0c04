"""Operator fusion: sorts a graph's operations into groups, each of which becomes one kernel.

In: a Graph after all rewrites. Out: the list of `Group`s in an order that can be executed.

- An anchor (matmul, convolution, …), a reduction or an elementwise operation opens a group.
- Its *epilogue*: elementwise and broadcast operations, a pad, a layout change or a transpose that keeps the innermost
  axis join the group that makes their main operand, if nobody outside the group reads that operand. (A large result leaves
  its blocked layout in a kernel of its own.)
- Attention is one group: a product, what scales and masks it, the softmax of its rows, and the product with the values.
- A group of elementwise operations alone joins the one group that reads it, if that is elementwise too, or a
  concatenation: each element is computed where it is used, once. What only widens its operand, as dequantization does,
  also joins an epilogue that reads it, and leaves the group that makes the operand for that.
- *Prologues*: views (transpose, slice, expand) are repeated inside every group that reads them, as index arithmetic in its
  loads. A reshape of something in memory is an alias: no kernel at all (`graph/plan.py`). One that merges axes which an
  expand has repeated (heads of keys that several heads of queries share) is a view like the others: nothing is copied.
- What only computes shapes has been folded before; what is left of it runs like anything else.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

from tilewright.graph.ir import Graph, Operation, Value, used_values
from tilewright.graph.ops.view import aligned_groups
from tilewright.graph.passes.attention import continued_kernels
from tilewright.graph.registry import record_of, runs_on_host
from tilewright.loop.ir import as_int

ALIASES = frozenset({"reshape", "identity"})
_HOST_PROGRAM = {"sizes": "sizes", "in_bounds": "check", **dict.fromkeys(ALIASES, "alias")}
CONTROL = frozenset({"if_", "loop", "scan"})
STRUCTURE = frozenset({"pad", "to_blocked", "from_blocked", "transpose"})
"""Operations that move elements and may end a group: its store is final."""

OWN_UNBLOCKING = 65536
"""Elements from which an anchor stores blocks and a kernel of its own brings them into the plain layout, where a tile of the
anchor has few neighbours. A depthwise convolution to 128 x 56 x 56 took 130 µs in one kernel and 48 + 59 µs in two, a
pointwise one to 255 x 26 x 26 430 µs and 370 + 28 µs; at 50000 elements both ways are level."""
OWN_UNBLOCKING_BYTES = 1024
"""The same of results in bytes, which a kernel of its own moves at once: quantized convolutions to 64 x 28 x 28 took 145 and
127 + 7 µs, depthwise ones 40 and 14 + 7 µs, pointwise ones to 256 x 14 x 14 76 and 59 + 10 µs."""


def fusion_of(op: Operation) -> str:
    """How an operation may be fused; one that runs on the host, not at all."""
    return "opaque" if runs_on_host(op) else record_of(op).fusion


@dataclass(eq=False)
class Group:
    """Operations that become one kernel; `inputs` and `outputs` are the values that cross its border, in order of use."""
    operations: list[Operation]
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """"alias" (no kernel), "sizes" (elements become symbols' values), "check" (of indices), "control" (regions),
        "host" (a call back into Python), or "kernel"."""
        first = self.operations[0].op
        if first in CONTROL:
            return "control"
        if first in _HOST_PROGRAM and len(self.operations) == 1:
            return _HOST_PROGRAM[first]
        return "host" if runs_on_host(self.operations[0]) else "kernel"

    @property
    def anchor(self) -> Operation:
        """The heaviest operation: an anchor, else a reduction, else the first."""
        order = {"anchor": 0, "reduction": 1}
        return min(self.operations, key=lambda o: order.get(fusion_of(o), 2))


def fuse(graph: Graph) -> list[Group]:
    """Sort all operations of a graph (not of its regions) into groups."""
    return _Fusion(graph).run()


def can_fold_view(reader: Operation) -> bool:
    """Whether an operation can read an operand through a view."""
    return reader.op not in ALIASES and reader.op not in CONTROL and fusion_of(reader) != "opaque"


def elements(op: Operation) -> int:
    """Elements of an operation's result (symbolic extents count 1)."""
    return prod([as_int(n) or 1 for n in op.output.shape])


def _bytes(v: Value) -> int:
    return v.dtype.nbytes * prod([as_int(n) or 1 for n in v.shape])


class _Fusion:
    """One forward walk; `group_of` tells the group that makes a value, `order` keeps the groups in executable order: a
    group stands where its last member does, when all its operands exist."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.users, self.producers = graph.users(), graph.producers()
        self.outputs = set(graph.outputs)
        self.position = {id(op): k for k, op in enumerate(graph.operations)}
        self.continued = continued_kernels(graph, self.users, self.producers)
        self.folded = self.folded_views()
        self.group_of: dict[Value, Group] = {}
        self.order: dict[Group, None] = {}

    def run(self) -> list[Group]:
        for op in self.graph.operations:
            if len(op.outputs) == 1 and op.output in self.folded:
                continue
            home = self.home(op)
            if home is None:
                home = Group([op])
            else:
                home.operations.append(op)
                del self.order[home]
            self.order[home] = None
            for v in op.outputs:
                self.group_of[v] = home
        for g in reversed(list(self.order)):
            self.merge_into_reader(g)
        for g in self.order:
            self.widen_in_reader(g)
        for g in self.order:
            self.close(g)
        return list(self.order)

    # ---- views -------------------------------------------------------------------------------------------------------
    def folded_views(self) -> set[Value]:
        """Values of views that every reader can fold into its loads, so that they are never stored."""
        out: set[Value] = set()
        for op in reversed(self.graph.operations):
            if fusion_of(op) != "view" or op.output in self.outputs:
                continue
            if not self.merges_repeated(op) if op.op in ALIASES else self.is_stored_transposed(op):
                continue
            readers = self.users.get(op.output, [])
            if readers and all(can_fold_view(r) or self.merges_repeated(r) and r.output in out for r in readers):
                out.add(op.output)
        return out

    def merges_repeated(self, op: Operation) -> bool:
        """Whether a reshape merges axes that an expand has repeated, where a few divisions by constants undo it and the
        innermost axis stays as it is: stored, the repetitions would be copies."""
        x = op.inputs[0] if op.op == "reshape" else None
        source = None if x is None else self.producers.get(x)
        while source is not None and source.op == "transpose" and len(self.users[source.output]) == 1:
            source = None if source.inputs[0] is None else self.producers.get(source.inputs[0])
        if x is None or source is None or source.op != "expand" or len(self.users[source.output]) != 1 or x.rank < 2:
            return False
        groups = aligned_groups(x.shape, op.output.shape)
        return groups[-1] == (range(x.rank - 1, x.rank), range(op.output.rank - 1, op.output.rank)) and all(
            len(merged) <= 1 and all(as_int(x.shape[k]) is not None for k in parts[1:]) for parts, merged in groups)

    def is_stored_transposed(self, op: Operation) -> bool:
        """Whether a transpose should be written by its producer rather than read through by its readers."""
        src = op.inputs[0]
        if op.op != "transpose" or op.attrs["perm"][-1] != len(op.attrs["perm"]) - 1 or src is None:
            return False
        if src in self.outputs or len(self.users.get(src, [])) != 1 or src not in self.producers:
            return False
        return fusion_of(self.producers[src]) in ("anchor", "elementwise", "broadcast")

    # ---- epilogues ---------------------------------------------------------------------------------------------------
    def home(self, op: Operation) -> Group | None:
        """The group that `op` joins: that of the attention which it continues, or the one whose epilogue it is, the latest
        if there are several."""
        if id(op) in self.continued:
            return self.group_of[self.continued[id(op)]]
        fusion = fusion_of(op)
        if (fusion not in ("elementwise", "broadcast") and op.op not in STRUCTURE) or len(op.outputs) != 1:
            return None
        found = [self.group_of[v] for v in op.inputs if v is not None and self.can_join(op, v)]
        return max(found, key=lambda g: self.position[id(g.operations[-1])], default=None)

    def can_join(self, op: Operation, v: Value) -> bool:
        """Whether `op` may join the group that makes its operand `v`."""
        g = self.group_of.get(v)
        if g is None or v in self.outputs or g.kind != "kernel":
            return False
        last = g.operations[-1]
        if v is not last.outputs[0] or len(last.outputs) != 1 or last.op in STRUCTURE or fusion_of(last) == "opaque":
            return False
        if any(u is not op for u in self.users[v]):
            return False
        if op.op in STRUCTURE:
            if any(id(o) in self.continued for o in g.operations):
                return op.op == "transpose"
            anchor = fusion_of(g.anchor)
            if op.op == "from_blocked" and anchor == "anchor" and elements(op) >= (
                    OWN_UNBLOCKING if op.output.dtype.nbytes > 1 else OWN_UNBLOCKING_BYTES):
                return False
            return anchor in ("anchor", "elementwise", "broadcast") or (op.op == "pad" and g.anchor.op == "concat")
        return v.shape == op.output.shape

    def merge_into_reader(self, g: Group) -> None:
        """Give an elementwise group to the only group that reads it, if that repeats no work."""
        if not all(fusion_of(op) in ("elementwise", "broadcast") for op in g.operations):
            return
        readers = {u for op in g.operations for v in op.outputs for u in self.users.get(v, ())} - set(g.operations)
        homes = {self.group_of.get(u.outputs[0]) if u.outputs else None for u in readers}
        if len(homes) != 1 or any(v in self.outputs for op in g.operations for v in op.outputs):
            return
        home = homes.pop()
        if home is None or not (all(self.takes_elements(op) for op in home.operations) or self.widens_for_epilogue(g, home)):
            return
        crossing = {v for op in g.operations for v in op.outputs if any(u in readers for u in self.users.get(v, ()))}
        if any(v.shape != u.output.shape for u in readers if u.op != "concat" for v in u.inputs if v in crossing):
            return  # the reader repeats it: better stored
        home.operations = g.operations + home.operations
        for op in g.operations:
            for v in op.outputs:
                self.group_of[v] = home
        del self.order[g]

    def widen_in_reader(self, g: Group) -> None:
        """Leave the end of a group that only widens its result, as dequantization does, to the epilogue that reads it, so
        that the narrow numbers are what is stored."""
        last, tail = g.operations[-1], list[Operation]()
        homes = {self.group_of.get(u.outputs[0]) if u.outputs else None for v in last.outputs for u in self.users.get(v, ())}
        home = homes.pop() if len(homes) == 1 else None
        if home is None or home is g or len(last.outputs) != 1 or last.output in self.outputs:
            return
        for op, before in pairwise(reversed(g.operations)):
            used = tuple([v for v in op.inputs if v is not None and not v.is_constant])
            if fusion_of(op) not in ("elementwise", "broadcast") or len(used) != 1 or used != before.outputs:
                return
            if used[0] in self.outputs or self.users[used[0]] != [op]:
                return
            tail.insert(0, op)
            if used[0].dtype.nbytes < last.output.dtype.nbytes and self.widens_for_epilogue(Group(tail), home):
                g.operations = g.operations[:-len(tail)]
                home.operations = tail + home.operations
                self.group_of.update({o.output: home for o in tail})
                return

    def widens_for_epilogue(self, g: Group, home: Group) -> bool:
        """Whether a group's results take more bytes than what it reads, as dequantized numbers do, and the epilogue of an
        anchor alone reads them: it reads the narrow operands as well."""
        made = {v for op in g.operations for v in op.outputs}
        if home.kind != "kernel" or fusion_of(home.anchor) != "anchor":
            return False
        if any(id(op) in self.continued for op in home.operations):
            return False
        readers = [op for op in home.operations if any(v in made for v in op.inputs)]
        if not all(fusion_of(op) in ("elementwise", "broadcast") for op in readers):
            return False
        read = {v for op in g.operations for v in op.inputs if v is not None and v not in made and not v.is_constant}
        stored = {v for op in readers for v in op.inputs if v in made}
        return sum(_bytes(v) for v in read) < sum(_bytes(v) for v in stored)

    def takes_elements(self, op: Operation) -> bool:
        """Whether an operation of a reading group uses each element of its operands at most once, where it stands: a
        concatenation along the innermost axis would mix them within a vector."""
        if op.op == "concat":
            return bool(op.attrs["axis"] != op.output.rank - 1)
        return fusion_of(op) in ("elementwise", "broadcast")

    # ---- borders -----------------------------------------------------------------------------------------------------
    def close(self, g: Group) -> None:
        """Add the folded views that a group reads through, then find what crosses its border."""
        need: set[int] = set()
        stack = [v for op in g.operations for v in used_values(op)]
        views: list[Operation] = []
        while stack:
            v = stack.pop()
            op = self.producers.get(v)
            if v in self.folded and op is not None and id(op) not in need:
                need.add(id(op))
                views.append(op)
                stack.extend(used_values(op))
        g.operations = sorted(views + g.operations, key=lambda op: self.position[id(op)])
        inside = {v for op in g.operations for v in op.outputs}
        g.inputs = list(dict.fromkeys(v for op in g.operations for v in used_values(op) if v not in inside))
        members = {id(op) for op in g.operations}
        g.outputs = [v for op in g.operations for v in op.outputs if v not in self.folded and (
            v in self.outputs or any(id(u) not in members and not self.only_folds(u) for u in self.users.get(v, ()))
            or self.read_through_views(v, members))]

    def only_folds(self, op: Operation) -> bool:
        return len(op.outputs) == 1 and op.output in self.folded

    def read_through_views(self, v: Value, members: set[int]) -> bool:
        """Whether an operation outside the group reads `v` through folded views."""
        stack = [u for u in self.users.get(v, ()) if self.only_folds(u)]
        while stack:
            for u in self.users.get(stack.pop().output, ()):
                if self.only_folds(u):
                    stack.append(u)
                elif id(u) not in members:
                    return True
        return False

"""ONNX's control flow: If, Loop and Scan, whose bodies become regions."""
from __future__ import annotations

from tilewright.core.dtype import boolean, i64
from tilewright.frontend.onnx.structure import same_structure, tensors_of, with_tensors
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.infer import constant_of, same
from tilewright.graph.ir import Graph, TensorType, Value, tensor_type
from tilewright.loop.ir import Expr, Span, Var

MAX_TURNS = 1000
"""A loop over sequences is read turn by turn, at most so many."""


@onnx_op("If")
def if_(c: Context) -> Result:
    """A branch that is known while compiling is read in place. Otherwise the branches must give values of one structure, or
    the condition must be known."""
    cond = c.x()
    known = constant_of(cond)
    if known is not None:
        return c.inline("then_branch" if known.reshape(-1)[0] else "else_branch")
    regions, (then, otherwise) = c.branches("then_branch", "else_branch")
    if len(then) != len(otherwise) or not all(same_structure(x, y) for x, y in zip(then, otherwise, strict=True)):
        c.array(0)
    if any(v.rank != w.rank for x, y in zip(then, otherwise, strict=True)
           for v, w in zip(tensors_of(x), tensors_of(y), strict=True)):
        c.array(0)
    made = c.add_all("if_", cond, regions=regions)
    pairs = zip(made, (v for x in then for v in tensors_of(x)), (v for x in otherwise for v in tensors_of(x)), strict=True)
    c.strings |= {v for v, x, y in pairs if c.is_text(x) or c.is_text(y)}
    tensors = iter(made)
    return [with_tensors(x, tensors) for x in then]


def _body(c: Context, fixed: list[TensorType], state: list[TensorType], rest: list[TensorType], first: int) -> Graph:
    """A body whose carried values keep their types: sizes that change from turn to turn become symbols."""
    types = list(state)
    changing: set[Expr] = set()

    def size(d: Expr, given: Expr) -> Expr:
        """A carried value's size, given its size before and after a turn."""
        if d in changing or same(d, given) is True:
            return d
        changing.add(new := Var("carried_size", span=Span()))
        return new
    for _ in range(sum(t.rank for t in types) + 1):  # each round but the last finds another size that changes
        values = [Value("carried", t) for t in [*fixed, *types, *rest]]
        body = c.region("body", values)
        again = [TensorType(t.dtype, tuple([size(d, e) for d, e in zip(t.shape, v.shape, strict=True)]))
                 if v.rank == t.rank else t for t, v in zip(types, body.outputs[first:], strict=False)]
        if all(s is u or s == u for s, u in zip(types, again, strict=True)):
            return body
        types = again
    return body


def _turns(c: Context) -> Result:
    """A loop that carries sequences, or optional values, is read turn by turn: how often must be known."""
    limit = MAX_TURNS if c.opt(0) is None else int(c.scalar(0))
    going = c.opt(1) is None or bool(c.scalar(1))
    state, rows = list(c.inputs[2:]), list[list[Value]]()
    turn = 0
    while going and turn < limit:
        if turn == MAX_TURNS:
            raise c.error("onnx-unsupported-variant", f"{c.op}: more than {MAX_TURNS} turns over sequences")
        first, *rest = c.inline("body", [c.const(turn, i64), c.const(True, boolean), *state])
        known = constant_of(first) if isinstance(first, Value) else None
        if known is None:
            raise c.error("onnx-unsupported-variant", f"{c.op}: a condition that depends on data, over sequences,")
        going, turn, state = bool(known.reshape(-1)[0]), turn + 1, rest[:len(state)]
        rows.append([x for x in rest[len(state):] if isinstance(x, Value)])
    stacked = [c.add("concat", *[c.b.unsqueeze(v, [0]) for v in column], axis=0) for column in zip(*rows, strict=True)]
    if len(state) + len(stacked) != len(c.outputs):
        raise c.error("onnx-unsupported-variant", f"{c.op}: results of no turn, over sequences,")
    return [*state, *stacked]


@onnx_op("Loop")
def loop(c: Context) -> Result:
    if any(not isinstance(x, Value) for x in c.inputs[2:]):
        return _turns(c)
    c.expect(not any(c.is_text(x) for x in c.inputs), "strings")
    bound, cond = c.opt(0), c.opt(1)
    carried = [c.x(k) for k in range(2, len(c.inputs))]
    fixed = [tensor_type(i64, ()), tensor_type(boolean, ())]
    body = _body(c, fixed, [v.type for v in carried], [], 1)
    bound = None if bound is None else c.reshape(c.cast(bound, i64), [])
    cond = None if cond is None else c.reshape(cond, [])
    return c.add_all("loop", bound, cond, *carried, regions=[body])


@onnx_op("Scan")
def scan_batched(c: Context) -> Result:
    """Version 8: a scan for each element of the batch, the first axis of all operands, by a scan over that axis."""
    count = c.a("num_scan_inputs")
    c.expect(c.opt(0) is None, "sequence_lens")
    if not 0 < count < len(c.inputs):
        raise c.error("onnx-invalid-graph", f"Scan: num_scan_inputs is {count}, {len(c.inputs)} inputs are given")
    given = [c.x(k) for k in range(1, len(c.inputs))]
    if any(v.rank < 1 for v in given) or any(v.rank < 2 for v in given[-count:]):
        raise c.error("rank-mismatch", "Scan: an operand has no axis of the batch or of the sequence")
    b = GraphBuilder(c.b.unique("batch"), c.b)
    own = [b.input(v.name, TensorType(v.dtype, v.shape[1:])) for v in given]
    states, sequences = own[:-count], own[-count:]
    steps = [TensorType(v.dtype, v.shape[1:]) for v in sequences]
    body = _body(c, [], [v.type for v in states], steps, 0)
    directions = c.a("directions")
    attrs = {"in_reverse": directions} if directions is not None else {}
    found = b.add_all("scan", own, {"sequences": count, **attrs}, regions=[body])
    return c.add_all("scan", *given, regions=[b.finish(found)], sequences=len(given))


@onnx_op("Scan", since=9)
def scan(c: Context) -> Result:
    count = c.a("num_scan_inputs")
    if not 0 < count <= len(c.inputs):
        raise c.error("onnx-invalid-graph", f"Scan: num_scan_inputs is {count}, {len(c.inputs)} inputs are given")
    states, sequences = c.all()[:-count], c.all()[-count:]
    axes = c.a("scan_input_axes", (0,) * count)
    steps = []
    for v, axis in zip(sequences, axes, strict=True):
        if not -v.rank <= axis < v.rank:
            raise c.error("axis-out-of-range", f"Scan: axis {axis} of {v.type}")
        shape = list(v.shape)
        del shape[axis]
        steps.append(TensorType(v.dtype, tuple(shape)))
    body = _body(c, [], [v.type for v in states], steps, 0)
    names = {"scan_input_axes": "in_axes", "scan_output_axes": "out_axes", "scan_input_directions": "in_reverse",
             "scan_output_directions": "out_reverse"}
    attrs = {ours: c.a(theirs) for theirs, ours in names.items() if c.a(theirs) is not None}
    return c.add_all("scan", *states, *sequences, regions=[body], sequences=count, **attrs)

"""ONNX's control flow: If, Loop and Scan, whose bodies become regions."""
from __future__ import annotations

from tilewright.core.dtype import boolean, i64
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.infer import constant_of, same
from tilewright.graph.ir import Graph, TensorType, Value, tensor_type
from tilewright.loop.ir import Var


@onnx_op("If")
def if_(c: Context) -> Result:
    """A branch that is known while compiling is read in place."""
    cond = c.x()
    known = constant_of(cond)
    if known is not None:
        return c.inline("then_branch" if known.reshape(-1)[0] else "else_branch")
    then, otherwise = c.region("then_branch", []), c.region("else_branch", [])
    return c.add_all("if_", cond, regions=[then, otherwise])


def _body(c: Context, fixed: list[TensorType], state: list[TensorType], rest: list[TensorType], first: int) -> Graph:
    """A body whose carried values keep their types: sizes that change from turn to turn become symbols."""
    types = list(state)
    for _ in range(max(t.rank for t in types) + 1 if types else 1):
        values = [Value("carried", t) for t in [*fixed, *types, *rest]]
        body = c.region("body", values)
        again = [TensorType(t.dtype, tuple([d if same(d, e) is True else Var("carried_size")
                                            for d, e in zip(t.shape, v.shape, strict=True)]))
                 if v.rank == t.rank else t for t, v in zip(types, body.outputs[first:], strict=False)]
        if all(s is u or s == u for s, u in zip(types, again, strict=True)):
            return body
        types = again
    return body


@onnx_op("Loop")
def loop(c: Context) -> Result:
    bound, cond = c.opt(0), c.opt(1)
    carried = [c.x(k) for k in range(2, len(c.inputs))]
    fixed = [tensor_type(i64, ()), tensor_type(boolean, ())]
    body = _body(c, fixed, [v.type for v in carried], [], 1)
    bound = None if bound is None else c.reshape(c.cast(bound, i64), [])
    cond = None if cond is None else c.reshape(cond, [])
    return c.add_all("loop", bound, cond, *carried, regions=[body])


@onnx_op("Scan")
def scan_batched(c: Context) -> Result:
    raise c.error("onnx-unsupported-variant", "Scan: version 8, with a batch axis, is not supported")


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

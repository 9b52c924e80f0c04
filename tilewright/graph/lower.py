"""From a fused group to a compute program: the recipes of its operations, one after another.

In: a `Group`. Out: a `Program` of unscheduled blocks whose parameters are named by position (in0, w0, out0, …), so that
groups that compute the same thing give equal programs and share one kernel, and the values behind the parameters.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tilewright.core.errors import InternalError
from tilewright.graph.ir import Operation, Value
from tilewright.graph.passes.fuse import Group
from tilewright.graph.registry import record_of
from tilewright.loop.ir import Program
from tilewright.tensor.compute import Tensor, const_table, create_program, placeholder

LITERAL_ELEMENTS = 1
"""Constants of at most this many elements become literals of the code; larger ones are parameters."""


@dataclass
class GroupProgram:
    """A program and what its parameters stand for: `inputs` (activations), `weights` (constants), `outputs`."""
    program: Program
    inputs: list[Value]
    weights: list[Value]
    outputs: list[Value]


Recipe = Any
"""compute(op, *tensors) -> Tensor or tuple of Tensors."""


def group_program(group: Group, name: str, choose: Any = None) -> GroupProgram:
    """Compose the recipes of a group. `choose(op) -> recipe name or None` may pick an alternative recipe."""
    tensors: dict[Value, Tensor] = {}
    inputs: list[Value] = []
    weights: list[Value] = []
    for v in group.inputs:
        if v.data is not None and v.data.size <= LITERAL_ELEMENTS:
            tensors[v] = const_table(v.data, v.dtype)
        elif v.is_constant:
            tensors[v] = placeholder(v.shape, v.dtype, f"w{len(weights)}")
            weights.append(v)
        else:
            tensors[v] = placeholder(v.shape, v.dtype, f"in{len(inputs)}")
            inputs.append(v)
    for op in group.operations:
        results = _run_recipe(op, tensors, choose)
        for v, t in zip(op.outputs, results, strict=True):
            tensors[v] = t
    params = [tensors[v] for v in inputs + weights]
    outs = [tensors[v] for v in group.outputs]
    program = create_program(name, params, outs, weights={f"w{k}" for k in range(len(weights))})
    return GroupProgram(program, inputs, weights, list(group.outputs))


def _run_recipe(op: Operation, tensors: dict[Value, Tensor], choose: Any) -> tuple[Tensor, ...]:
    rec = record_of(op)
    picked = choose(op) if choose is not None else None
    recipe = rec.alternatives[picked] if picked else rec.compute
    if recipe is None:
        raise InternalError(f"operator {op.op} has no compute recipe")
    result = recipe(op, *[None if v is None else tensors[v] for v in op.inputs])
    return result if isinstance(result, tuple) else (result,)

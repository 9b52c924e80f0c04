"""Where a compiled model begins to differ from what it means: the first layer, the pass, or the kernel.

In: a compiled model and inputs. Out: per stored value its errors against a reference, and the culprit. The reference is the
graph interpreter; in float64 where every operator of the graph has that.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.core.dtype import DType, f16, f32, f64
from tilewright.core.errors import InternalError, UserError
from tilewright.core.passes import Observer, Step
from tilewright.core.strings import scope
from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Graph, Operation, TensorType, Value
from tilewright.graph.pipeline import graph_pipeline
from tilewright.graph.registry import make
from tilewright.model import Model, relative_error
from tilewright.tools.compare import TOLERANCE, errors, facts

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layer:
    """A value that a kernel stores: its name, the kernel and what it computes, and the errors as of `compare.Difference`."""
    value: str
    kernel: str
    label: str
    absolute: float
    mean: float
    relative: float
    ulp: int | None
    ok: bool

    def facts(self) -> dict[str, Any]:
        return facts(self)


@dataclass
class Verdict:
    """What makes a result differ: "nothing", "pass" or "kernel"; its name; the largest relative error of the outputs; and
    for a kernel the layer where it begins."""
    kind: str
    name: str
    relative: float
    layer: Layer | None = None
    steps: list[tuple[str, float]] = field(default_factory=list)


# ---- the reference ---------------------------------------------------------------------------------------------------
def reference_values(graph: Graph, feeds: Sequence[Any]) -> dict[str, Array]:
    """Every value of the graph (not of its regions) by name; in float64 where that is possible."""
    try:
        return _observed(widened(graph), [_wide_array(a) for a in feeds])
    except (UserError, InternalError):  # an operator without float64: the graph as it is
        return _observed(graph, feeds)


def reference_outputs(model: Model, inputs: Mapping[str, Any]) -> tuple[str, list[Array]]:
    """The model's outputs as the interpreter computes them in float64, and that name; in the model's own types where an
    operator has no form in float64."""
    assert isinstance(model.graph, Graph)
    with scope():
        feeds = _flat(model, inputs)
        try:
            return "float64", interpret.run(widened(model.graph), [_wide_array(a) for a in feeds])
        except (UserError, InternalError):
            return "interpreter", interpret.run(model.graph, feeds)


def _observed(graph: Graph, feeds: Sequence[Any]) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def see(op: Operation, results: tuple[Array, ...]) -> None:
        found.update(zip([v.name for v in op.outputs], results, strict=True))
    interpret.run(graph, feeds, observe=see)
    return found


def _wide(t: DType) -> DType:
    return f64 if t in (f32, f16) else t


def _wide_array(a: Any) -> Array:
    array = np.asarray(a)
    return array.astype(np.float64) if array.dtype in (np.float32, np.float16) else array


def widened(graph: Graph) -> Graph:
    """The graph with f64 in place of f32 and f16. UserError where an operator does not have it."""
    new: dict[Value, Value] = {}

    def value(v: Value | None) -> Value | None:
        if v is None:
            return None
        if v not in new:
            t = TensorType(_wide(v.dtype), v.shape)
            new[v] = Value(v.name, t, None if v.data is None else _wide_array(v.data), v.elements, v.loc)
        return new[v]

    def region(g: Graph) -> Graph:
        b = GraphBuilder(g.name)
        b.inputs = [x for x in map(value, g.inputs) if x is not None]
        for op in g.operations:
            attrs = {k: _wide(a) if isinstance(a, DType) else a for k, a in op.attrs.items()}
            made = make(op.op, [value(v) for v in op.inputs], attrs, name=op.outputs[0].name if op.outputs else "",
                        loc=op.loc, regions=[region(r) for r in op.regions])
            for old, v in zip(op.outputs, made.outputs, strict=True):
                v.name = old.name
                new[old] = v
            b.operations.append(made)
        return b.finish([x for x in map(value, g.outputs) if x is not None], g.output_names)
    return region(graph)


# ---- layers ----------------------------------------------------------------------------------------------------------
def layers(model: Model, inputs: Mapping[str, Any], tolerance: float = TOLERANCE) -> list[Layer]:
    """The values that the kernels store, in order of execution, beside the reference; values inside loops and branches
    are left out. Raises UserError "model-loaded"."""
    got = model.intermediates(inputs)
    graph = model.stages.optimized
    makers = {v.name: use for use in model.kernels for v in use.group.outputs}
    with scope():
        want = reference_values(graph, _flat(model, inputs))
    out = []
    for name, array in got.items():
        if name in want and name in makers:
            found = errors(array, want[name], array.dtype.kind not in "iub", tolerance)
            out.append(Layer(name, makers[name].kernel, makers[name].label, *found))
    return out


def _flat(model: Model, inputs: Mapping[str, Any]) -> list[Any]:
    """The tensors of the graph's inputs."""
    if model.signature is None:
        return [inputs[spec.name] for spec in model.inputs]
    return model.signature.flatten([inputs[name] for name, _ in model.signature.inputs])


# ---- the culprit -----------------------------------------------------------------------------------------------------
class _Interpreting(Observer):
    """Interprets the graph after each pass that changed it, and keeps the error of its outputs."""

    def __init__(self, feeds: Sequence[Any], want: Sequence[Array]) -> None:
        self.feeds, self.want = feeds, want
        self.steps: list[tuple[str, float]] = []

    def after(self, step: Step, before: Any, ir: Any) -> None:
        if ir is not before:
            got = interpret.run(ir, self.feeds)
            self.steps.append((step.name, _worst(got, self.want)))


def _worst(got: Sequence[Array], want: Sequence[Array]) -> float:
    return max([relative_error(a, b) for a, b in zip(got, want, strict=True)], default=0.0)


def bisect(model: Model, inputs: Mapping[str, Any], tolerance: float = TOLERANCE, numerics: str = "default") -> Verdict:
    """The pass after which the graph means something else, or the first kernel whose result differs from its graph's."""
    stages, target = model.stages, model.target
    if stages is None or target is None:
        raise UserError("model-loaded", "a loaded library does not know its passes", hint="compile the model to look inside")
    with scope():
        feeds = _flat(model, inputs)
        want = interpret.run(stages.imported, feeds)
        relative = _worst(model.executable.run(feeds), want)
        seen = _Interpreting(feeds, want)
        graph_pipeline(target, numerics).run(stages.imported, [seen])
    wrong = next((name for name, e in seen.steps if not e <= tolerance), None)
    if wrong is not None:
        return Verdict("pass", wrong, relative, steps=seen.steps)
    if relative <= tolerance:
        return Verdict("nothing", "", relative, steps=seen.steps)
    first = next((x for x in layers(model, inputs, tolerance) if not x.ok), None)
    if first is None:
        return Verdict("kernel", "one inside a loop or a branch, or the host program", relative, steps=seen.steps)
    return Verdict("kernel", first.kernel, relative, first, seen.steps)

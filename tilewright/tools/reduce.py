"""A small model that shows what a large one shows. In: an ONNX model and a question about models. Out: a model of fewer
nodes of which the answer is the same.

Nodes are left out by delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002):
what a left-out node made becomes an input, and what nobody reads any more an output. Then outputs go one by one.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tilewright import driver
from tilewright.core.errors import TilewrightError, UserError
from tilewright.frontend.onnx.read import read_model
from tilewright.graph import interpret
from tilewright.model import Model, relative_error

Question = Callable[[Any], bool]
"""Whether a model (ModelProto) still shows it."""


def _feeds(made: Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Random inputs, and those given in the places that a smaller model still has."""
    return {name: inputs.get(name, random) for name, random in made.random_inputs().items()}


def shows_error(code: str, inputs: Mapping[str, Any] = MappingProxyType({})) -> Question:
    """Whether compiling or running a model ends in the UserError of this code, or ("internal") a fault of the compiler."""
    def ask(proto: Any) -> bool:
        try:
            with driver.compile(proto) as made:
                made.run(_feeds(made, inputs))
        except UserError as e:
            return e.code == code
        except TilewrightError:
            return code == "internal"
        return False
    return ask


def shows_difference(tolerance: float, numerics: str | None = None,
                     inputs: Mapping[str, Any] = MappingProxyType({})) -> Question:
    """Whether the compiled model differs from the graph interpreter."""
    def ask(proto: Any) -> bool:
        try:
            with driver.compile(proto, numerics=numerics) as made:
                feeds = _feeds(made, inputs)
                assert made.graph is not None
                pairs = zip(made.run(feeds), interpret.run(made.graph, feeds), strict=True)
                return any(not relative_error(np.asarray(a), b) <= tolerance for a, b in pairs)
        except TilewrightError:
            return False
    return ask


def reduce_model(model: Any, question: Question) -> Any:
    """The smallest model found. Raises UserError "reduce-nothing" if the model itself does not show it."""
    import onnx
    proto = read_model(model)[0]
    if not question(proto):
        raise UserError("reduce-nothing", "the model does not show this", hint="`tilewright compare` shows whether it "
                        "differs, `tilewright run` in which error it ends")
    try:
        known = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        known = proto
    infos = {v.name: v for v in (*known.graph.value_info, *known.graph.output, *known.graph.input) if _is_known(v)}
    nodes = list(proto.graph.node)

    def shows(kept: Sequence[int], outputs: Sequence[str] | None = None) -> bool:
        made = _part(proto, [nodes[k] for k in kept], infos, outputs)
        return made is not None and question(made)
    kept = _minimized(list(range(len(nodes))), shows)
    outputs = [v.name for v in _part(proto, [nodes[k] for k in kept], infos, None).graph.output]
    for name in list(outputs):
        fewer = [x for x in outputs if x != name]
        if fewer and shows(kept, fewer):
            outputs = fewer
    return _part(proto, [nodes[k] for k in kept], infos, outputs)


def _is_known(info: Any) -> bool:
    t = info.type.tensor_type
    return bool(info.type.WhichOneof("value") == "tensor_type" and t.elem_type and t.HasField("shape") and all(
        d.WhichOneof("value") == "dim_value" for d in t.shape.dim))


def _minimized(items: list[int], shows: Callable[[list[int]], bool]) -> list[int]:
    """A subset from which nothing can be left out by chunks, then one by one (ddmin)."""
    chunk = max(len(items) // 2, 1)
    while True:
        at, before = 0, len(items)
        while at < len(items):
            fewer = items[:at] + items[at + chunk:]
            if fewer and shows(fewer):
                items = fewer
            else:
                at += chunk
        if chunk == 1 and len(items) == before:
            return items
        chunk = max(chunk // 2, 1)


def _part(proto: Any, nodes: Sequence[Any], infos: dict[str, Any], outputs: Sequence[str] | None) -> Any:
    """The model of some nodes; None where the type of what they read is not known."""
    import onnx
    made = {x for n in nodes for x in n.output if x}
    read = {x for n in nodes for x in _reads(n)}
    weights = [t for t in proto.graph.initializer if t.name in read]
    missing = sorted(read - made - {t.name for t in weights})
    own = {v.name: v for v in proto.graph.input}
    if any(x not in infos and x not in own for x in missing):
        return None
    ends = [x for n in nodes for x in n.output if x and (x not in read or x in {v.name for v in proto.graph.output})]
    chosen = [x for x in ends if outputs is None or x in outputs]
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    out.graph.ClearField("node")
    out.graph.ClearField("initializer")
    out.graph.ClearField("input")
    out.graph.ClearField("output")
    out.graph.ClearField("value_info")
    out.graph.node.extend(nodes)
    out.graph.initializer.extend(weights)
    out.graph.input.extend([infos.get(x) or own[x] for x in missing])
    out.graph.output.extend([infos[x] if x in infos else onnx.ValueInfoProto(name=x) for x in chosen])
    return out if chosen else None


def _reads(node: Any) -> set[str]:
    """Names that a node and its subgraphs take from outside."""
    out = {x for x in node.input if x}
    for a in node.attribute:
        for g in (*([a.g] if a.HasField("g") else []), *a.graphs):
            inner = {v.name for v in g.input} | {t.name for t in g.initializer} | {x for n in g.node for x in n.output}
            out |= {x for n in g.node for x in _reads(n)} - inner
            out |= {v.name for v in g.output} - inner
    return out

"""Help for tests of the ONNX frontend: small models, and their results beside those of another implementation."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilewright.frontend.onnx.importer import import_onnx
from tilewright.graph import interpret
from tilewright.graph.ir import Graph

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name: str, shape: Sequence[Any] | None, element: int = F32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def constant(name: str, array: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def model(nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[str], *,
          weights: dict[str, Any] | None = None, opset: int = 17, imports: Sequence[Any] = (), ir: int = 8,
          functions: Sequence[Any] = ()) -> onnx.ModelProto:
    infos = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "main", list(inputs), infos,
                              [constant(k, v) for k, v in (weights or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *imports], ir_version=ir,
                             functions=list(functions))


def one(op: str, arrays: Sequence[Any], opset: int, *, fixed: Sequence[int] = (), outputs: int = 1,
        name: str = "", **attrs: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model of one node, and its inputs. Operands at the places `fixed` are weights; None is left out."""
    names = ["" if a is None else f"x{k}" for k, a in enumerate(arrays)]
    node = helper.make_node(op, names, [f"y{k}" for k in range(outputs)], name=name, **attrs)
    given = {n: np.asarray(a) for n, a in zip(names, arrays, strict=True) if n}
    weights = {f"x{k}": given[f"x{k}"] for k in fixed}
    feeds = {n: a for n, a in given.items() if n not in weights}
    infos = [value(n, a.shape, helper.np_dtype_to_tensor_dtype(a.dtype)) for n, a in feeds.items()]
    return model([node], infos, [f"y{k}" for k in range(outputs)], weights=weights, opset=opset), feeds


def run(m: Any, feeds: Any, **options: Any) -> list[Any]:
    return interpret.run(import_onnx(m, **options), feeds)


def by_reference(m: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    from onnx.reference import ReferenceEvaluator
    return list(ReferenceEvaluator(m).run(None, feeds))


def by_onnxruntime(m: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def same(got: Sequence[Any], wanted: Sequence[Any], rtol: float = 1e-3, atol: float = 1e-6) -> None:
    """Equal types and shapes; integers exactly, floats as ONNX's own tests compare them."""
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        b = np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype.kind in "biu":
            np.testing.assert_array_equal(a, b)
        else:
            loose = 1e-2 if a.dtype.itemsize < 4 else atol
            np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=rtol, atol=loose)


def ops_of(graph: Graph) -> list[str]:
    return [op.op for op in graph.operations]


def case_value(x: Any) -> Any:
    """What a case gives or expects, as arrays, lists and None."""
    to: Any = {onnx.TensorProto: numpy_helper.to_array, onnx.SequenceProto: numpy_helper.to_list,
          onnx.OptionalProto: numpy_helper.to_optional}.get(type(x))
    return x if to is None else to(x)


def compare(expected: Any, got: Any, rtol: float, atol: float) -> None:
    """As ONNX's own runner: type and shape must be the same, numbers within the case's tolerances."""
    if expected is None or isinstance(expected, list):
        assert (got is None) == (expected is None)
        for x, y in zip(expected or (), got or (), strict=True):
            compare(x, y, rtol, atol)
        return
    e = np.asarray(expected)
    if e.dtype.kind in "OSU":
        np.testing.assert_array_equal(got, e.astype(object))
        return
    assert (got.dtype, got.shape) == (e.dtype, e.shape)
    if e.dtype.isbuiltin != 2:  # 2: a type of ml_dtypes; 0 is NumPy's own after pickling
        np.testing.assert_allclose(got, e, rtol=rtol, atol=atol)
    else:  # bfloat16, float8, …: a step of the type is larger than the tolerance of f32
        np.testing.assert_allclose(got.astype(np.float64), e.astype(np.float64), rtol=max(rtol, 1e-2), atol=atol)

"""ONNX's backend interface: a model and its inputs in, the outputs out, by compiled code. A layer above the driver.

`run_native` compiles from the model and the types and shapes of its inputs; only inputs whose *values* decide shapes
(axes, sizes, scales, k) are made part of the model, and it raises where that would leave nothing to compile. `run` may
also leave a model that cannot be compiled to the graph interpreter, and says so in a warning.
"""
from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright import driver
from tilewright.core.errors import TilewrightError, UserError
from tilewright.frontend.onnx.importer import import_onnx
from tilewright.frontend.onnx.read import read_model
from tilewright.frontend.onnx.table import NeedsValue
from tilewright.graph import interpret
from tilewright.graph.ir import used_values
from tilewright.model import Model

MAX_SPECIALIZED = 64
"""Inputs of at most this many elements can be made part of the model."""


class HostFallback(UserWarning):
    """A model ran in the graph interpreter rather than as compiled code."""


def run(model: Any, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of an ONNX model (path, bytes or ModelProto) for inputs in the graph's order (None: left out). What
    cannot be compiled runs in the interpreter, with a `HostFallback` warning. Raises UserError."""
    try:
        return run_native(model, inputs)
    except TilewrightError as e:
        warnings.warn(f"this model runs in the interpreter: {e}", HostFallback, stacklevel=2)
    bound, feeds = _specialized(model, _feeds(model, inputs))
    return interpret.run(import_onnx(bound, shapes=_shapes(feeds)), feeds)


def run_native(model: Any, inputs: Sequence[Any]) -> list[Any]:
    """As `run`, by compiled code alone. Raises UserError "backend-folded" where the values of inputs would decide all."""
    return prepare(model, inputs).run(inputs)


@dataclass
class Prepared:
    """A compiled model; `names` are its inputs in the graph's order, `specialized` those whose values it contains."""
    model: Model
    names: list[str]
    specialized: dict[str, np.ndarray[Any, Any]]

    def run(self, inputs: Sequence[Any], **_: Any) -> list[Any]:
        """One run. Raises UserError "backend-specialized" for another value of an input that the code was made for."""
        feeds = {k: np.asarray(v) for k, v in zip(self.names, inputs, strict=False) if v is not None}
        for name, value in self.specialized.items():
            if not np.array_equal(feeds.pop(name), value):
                raise UserError("backend-specialized", f"this code was made for {name} = {value.tolist()}")
        return list(self.model.run(feeds))


def prepare(model: Any, inputs: Sequence[Any]) -> Prepared:
    """Compile a model for the types and shapes of the inputs, and for the values of those that decide shapes."""
    feeds = _feeds(model, inputs)
    bound, rest = _specialized(model, feeds)
    made = driver.compile(bound, shapes=_shapes(rest))
    fixed = {k: v for k, v in feeds.items() if k not in rest}
    if fixed:
        _check_depends(made)
    return Prepared(made, _input_names(model), fixed)


def _check_depends(made: Model) -> None:
    """UserError "backend-folded" if an output depends on no input that is left."""
    optimized = made.stages.optimized
    depends = set(optimized.inputs)
    for op in optimized.operations:
        if any(v in depends for v in used_values(op)):
            depends |= set(op.outputs)
    for name, v in zip(optimized.output_names, optimized.outputs, strict=True):
        if v not in depends:
            raise UserError("backend-folded", f"the output {name!r} depends only on inputs that were made constant")


def _input_names(model: Any) -> list[str]:
    graph = read_model(model)[0].graph
    fixed = {t.name for t in graph.initializer}
    return [v.name for v in graph.input if v.name not in fixed]


def _feeds(model: Any, inputs: Sequence[Any]) -> dict[str, np.ndarray[Any, Any]]:
    names = _input_names(model)
    if len(inputs) > len(names):
        raise UserError("input-count", f"the model has {len(names)} inputs, got {len(inputs)}")
    lists = [n for n, v in zip(names, inputs, strict=False) if isinstance(v, list | dict)]
    if lists:
        raise UserError("onnx-unsupported-type", f"the input {lists[0]!r} is no tensor")
    return {n: np.asarray(v) for n, v in zip(names, inputs, strict=False) if v is not None}


def _shapes(feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, tuple[int, ...]]:
    return {name: v.shape for name, v in feeds.items()}


def _specialized(model: Any, feeds: Mapping[str, np.ndarray[Any, Any]]) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """The model with those inputs as weights whose values must be known, and the inputs that are left. They are found by
    importing until nothing is missing; where what is missing is computed, all small integer inputs are taken."""
    rest, proto = dict(feeds), model
    while True:
        try:
            import_onnx(proto, shapes=_shapes(rest))
            return proto, rest
        except NeedsValue as e:
            name = e.value.name
            integers = [k for k, v in rest.items() if v.dtype.kind in "iu"]
            take = [k for k in ([name] if name in rest else integers) if rest[k].size <= MAX_SPECIALIZED]
            if not take:
                raise
        proto = _with_weights(proto, {k: rest.pop(k) for k in take})


def _with_weights(model: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """A copy of a model in which some inputs are initializers."""
    from onnx import numpy_helper
    old, _ = read_model(model)
    proto = type(old)()
    proto.CopyFrom(old)
    proto.graph.initializer.extend([numpy_helper.from_array(v, k) for k, v in arrays.items()])
    left = [v for v in old.graph.input if v.name not in arrays]
    del proto.graph.input[:]
    proto.graph.input.extend(left)
    return proto


@functools.cache
def backend() -> Any:
    """The subclass of `onnx.backend.base.Backend`, made when first asked for: importing this file does not need onnx."""
    from onnx.backend.base import Backend, BackendRep

    class Rep(BackendRep):
        """A model whose code is made at its first run, when the shapes of its inputs are known."""

        def __init__(self, model: Any) -> None:
            self.model = model

        def run(self, inputs: Sequence[Any], **_: Any) -> tuple[Any, ...]:
            return tuple(run(self.model, inputs))

    class TilewrightBackend(Backend):
        """ONNX's interface to a backend."""

        @classmethod
        def prepare(cls, model: Any, device: str = "CPU", **_: Any) -> Any:
            return Rep(model)

        @classmethod
        def run_model(cls, model: Any, inputs: Sequence[Any], device: str = "CPU", **_: Any) -> tuple[Any, ...]:
            return tuple(run(model, inputs))

        @classmethod
        def supports_device(cls, device: str) -> bool:
            return device.split(":")[0] == "CPU"
    return TilewrightBackend

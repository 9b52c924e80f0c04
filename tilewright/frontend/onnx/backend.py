"""ONNX's backend interface: a model and its inputs in, the outputs out, by compiled code. This module is a backend in the
sense of `onnx.backend.base` (`prepare`, `run_model`, `run_node`, `supports_device`, `is_compatible`). It stands beside the
importer, where ONNX's users look for it, but in a layer above the driver, which it calls.

`run_native` compiles from the model and the types and shapes of its inputs; only inputs whose *values* decide shapes
(axes, sizes, scales, k) are made part of the model, and it raises where that would leave nothing to compile. `run` may
also leave a model that cannot be compiled to the graph interpreter, and says so in a warning.
"""
from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from tilewright import driver
from tilewright.core import strings
from tilewright.core.errors import TilewrightError, UserError
from tilewright.frontend.onnx.importer import check_readable, import_model, import_onnx
from tilewright.frontend.onnx.read import read_model
from tilewright.frontend.onnx.table import NeedsValue
from tilewright.graph import interpret
from tilewright.graph.ir import used_values
from tilewright.model import Model

MAX_SPECIALIZED = 64
"""Inputs of at most this many elements can be made part of the model."""


Array = np.ndarray[Any, Any]


class HostFallback(UserWarning):
    """A model ran in the graph interpreter rather than as compiled code."""


def run(model: Any, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of an ONNX model (path, bytes or ModelProto) for inputs in the graph's order (None: left out; a sequence is a
    list). Operators without a compiled form run on the host, with a `HostWarning`; what cannot be compiled at all runs in
    the interpreter, with a `HostFallback` warning. Raises UserError."""
    try:
        return compile_for(model, inputs, "host").run(inputs)
    except TilewrightError as e:
        return _interpreted(model, inputs, e)


def run_native(model: Any, inputs: Sequence[Any]) -> list[Any]:
    """As `run`, by compiled code alone. Raises UserError "backend-folded" where the values of inputs would decide all, and
    "fallback-host" where an operator would run on the host."""
    return compile_for(model, inputs).run(inputs)


def specialized_inputs(model: Any, inputs: Sequence[Any]) -> list[str]:
    """The inputs whose values `run_native` makes part of the code, by name: the others are free. Raises UserError where the
    model cannot be read."""
    feeds = _feeds(model, inputs)
    rest = _specialized(model, feeds)[1]
    return [name for name in feeds if name not in rest]


def _interpreted(model: Any, inputs: Sequence[Any], why: TilewrightError) -> list[Any]:
    """The outputs as the graph interpreter computes them, with a warning that says why."""
    warnings.warn(f"this model runs in the interpreter: {why}", HostFallback, stacklevel=3)
    return interpreted(model, inputs)


def interpreted(model: Any, inputs: Sequence[Any]) -> list[Any]:
    """The outputs as the graph interpreter computes them: the reference. Raises UserError."""
    bound, feeds = _specialized(model, _feeds(model, inputs))
    read = import_model(bound, shapes=_shapes(feeds))
    with strings.scope():
        flat = read.signature.flatten([feeds[name] for name, _ in read.signature.inputs])
        return read.signature.unflatten(interpret.run(read.graph, flat))


@dataclass
class Prepared:
    """A compiled model; `names` are its inputs in the graph's order, `specialized` those whose values it contains."""
    model: Model
    names: list[str]
    specialized: dict[str, Array]

    @property
    def wanted(self) -> set[str]:
        """Names of the inputs that a run takes, those with fixed values among them."""
        signature = self.model.signature
        own = [i.name for i in self.model.inputs] if signature is None else [name for name, _ in signature.inputs]
        return {*own, *self.specialized}

    def fits(self, inputs: Sequence[Any]) -> bool:
        """Whether the inputs that the code was made for have the values that it contains."""
        feeds = dict(zip(self.names, inputs, strict=False))
        return all(np.array_equal(feeds[name], value) for name, value in self.specialized.items())

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """One run. Raises UserError "backend-specialized" for another value of an input that the code was made for."""
        feeds = {k: v for k, v in _values(zip(self.names, inputs, strict=False)).items() if k in self.wanted}
        for name, value in self.specialized.items():
            if not np.array_equal(feeds.pop(name), value):
                raise UserError("backend-specialized", f"this code was made for {name} = {value.tolist()}")
        return list(self.model.run(feeds))


def compile_for(model: Any, inputs: Sequence[Any], fallback: str = "error") -> Prepared:
    """Compile a model for the types, shapes and structure of the inputs, and for the values of those that decide shapes.
    `fallback` as for `tilewright.compile`."""
    feeds = _feeds(model, inputs)
    bound, rest = _specialized(model, feeds)
    made = driver.compile(bound, shapes=_shapes(rest), fallback=fallback)
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


def _feeds(model: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    """Values by input name; None only for optional values, which may be empty."""
    proto = read_model(model)[0].graph
    names = _input_names(model)
    if len(inputs) > len(names):
        raise UserError("input-count", f"the model has {len(names)} inputs, got {len(inputs)}")
    optional = {v.name for v in proto.input if v.type.WhichOneof("value") == "optional_type"}
    given = _values(zip(names, inputs, strict=False))
    return {k: v for k, v in given.items() if v is not None or k in optional}


def _values(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Arrays, lists of them, and None."""
    def value(v: Any) -> Any:
        return None if v is None else [value(x) for x in v] if isinstance(v, list) else np.asarray(v)
    return {k: value(v) for k, v in pairs}


def _shapes(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of each value, of a sequence the list of its elements'."""
    def shape(v: Any) -> Any:
        return None if v is None else [shape(x) for x in v] if isinstance(v, list) else v.shape
    return {name: shape(v) for name, v in feeds.items()}


def _specialized(model: Any, feeds: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model with those inputs as weights whose values must be known, and the inputs that are left. They are found by
    importing until nothing is missing; where what is missing is computed, all small integer inputs are taken."""
    rest, proto = dict(feeds), model
    while True:
        try:
            import_onnx(proto, shapes=_shapes(rest))
            return proto, rest
        except NeedsValue as e:
            name = e.value.name
            integers = [k for k, v in rest.items() if isinstance(v, np.ndarray) and v.dtype.kind in "iub"]
            take = [k for k in ([name] if name in rest else integers) if rest[k].size <= MAX_SPECIALIZED]
            if not take:
                raise
        proto = _with_weights(proto, {k: rest.pop(k) for k in take})


def _with_weights(model: Any, arrays: Mapping[str, Array]) -> Any:
    """A copy of a model in which some inputs are initializers."""
    old, _ = read_model(model)
    proto = type(old)()
    proto.CopyFrom(old)
    proto.graph.initializer.extend([onnx.numpy_helper.from_array(v, k) for k, v in arrays.items()])
    left = [v for v in old.graph.input if v.name not in arrays]
    del proto.graph.input[:]
    proto.graph.input.extend(left)
    return proto


class TilewrightRep(BackendRep):
    """A prepared model. Its code is made when the inputs' types and shapes are known, once for each set of them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._made: dict[str, list[Prepared]] = {}

    @property
    def specialized(self) -> dict[str, int]:
        """How many of the codes made so far contain the value of an input, by its name."""
        names = [name for made in self._made.values() for p in made for name in p.specialized]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        """The outputs for inputs in the graph's order (None: left out). Raises UserError, as `run`."""
        key = repr([(k, _kinds(v)) for k, v in _values(enumerate(inputs)).items()])
        made = self._made.setdefault(key, [])
        fitting = next((p for p in made if p.fits(inputs)), None)
        if fitting is None:
            try:
                fitting = compile_for(self.model, inputs, "host")
            except TilewrightError as e:
                return tuple(_interpreted(self.model, inputs, e))
            made.append(fitting)
        return tuple(fitting.run(inputs))


def _kinds(v: Any) -> Any:
    """Type and shape of a value, of a sequence those of its elements."""
    return None if v is None else [_kinds(x) for x in v] if isinstance(v, list) else (v.dtype.str, v.shape)


class TilewrightBackend(Backend):
    """ONNX's interface to a backend. `device` is "CPU", with or without a number."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **_: Any) -> bool:
        """Whether the model can be read: its file is sound and its operators are known."""
        try:
            check_readable(model)
        except UserError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **_: Any) -> TilewrightRep:
        """Raises UserError for a device that is not there and for a model that cannot be read."""
        if not cls.supports_device(device):
            raise UserError("backend-device", f"there is no device {device!r}", hint='the device is "CPU"')
        check_readable(model)
        return TilewrightRep(model)

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **_: Any) -> tuple[Any, ...]:
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def run_node(cls, node: Any, inputs: Any, device: str = "CPU", outputs_info: Any = None,
                 **options: Any) -> tuple[Any, ...]:
        """One node; `opset_version` says of which operator set, else it is the newest."""
        newest = onnx.defs.onnx_opset_version() if node.domain in ("", "ai.onnx") else 1
        opset = onnx.helper.make_opsetid(node.domain, options.get("opset_version", newest))
        given = dict(zip([n for n in node.input if n], [v for v in inputs if v is not None], strict=True))
        infos = [_info(name, np.asarray(v)) for name, v in given.items()]
        outs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", infos, outs)
        return cls.run_model(onnx.helper.make_model(graph, opset_imports=[opset]), list(given.values()), device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device.split(":")[0] == "CPU"


def _info(name: str, array: Array) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


is_compatible = TilewrightBackend.is_compatible
prepare = TilewrightBackend.prepare
run_model = TilewrightBackend.run_model
run_node = TilewrightBackend.run_node
supports_device = TilewrightBackend.supports_device

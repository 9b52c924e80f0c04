"""extern: a stage that a C function computes, in the compute language.

In: the tensors that it reads, the shapes of those that it makes, and a call. Out: tensors, made by a block without loops
whose body is that call:

    gemm = extern_function("gemm", "libown.so")
    C = extern((m, n), [A, B], lambda ins, outs: call(gemm, ins[0], ins[1], outs[0], m, n, k), name="C")

The block reads its inputs whole and writes its outputs whole; what else it does nobody knows, so nothing can be computed
inside of it, and it runs as often, and in the order, as it is written.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewright.core.dtype import DType, dtype, f64, i64
from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.externs import ExternFunction, extern_function
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    Block,
    Buffer,
    Call,
    Evaluate,
    Expr,
    ExternCall,
    For,
    IntoExpr,
    Load,
    Stmt,
    Store,
    Var,
    const,
    expr,
    seq,
)
from tilewright.tensor.compute import Stage, Tensor
from tilewright.tensor.scatter import ORDERED
from tilewright.tensor.script import Kernel

OPAQUE = "extern"
"""The attribute of a block whose body is a call of an external function: its symbol."""
_NUMBERS = frozenset({"i32", "i64", "u64", "f32", "f64"})


@dataclass(frozen=True)
class Calling:
    """A function and what it is passed: tensors (the address of their first element) and numbers."""
    function: ExternFunction
    args: tuple[Tensor | Expr, ...]


@dataclass(eq=False)
class Extern(Stage):
    """A stage that `calling` computes."""
    calling: Calling = field(default_factory=lambda: Calling(ExternFunction(""), ()))

    def nest(self, name: Callable[[str], str]) -> Stmt:
        """The block, which is in no loop."""
        f = self.calling.function
        args = tuple([_first(a.buffer) if isinstance(a, Tensor) else a for a in self.calling.args])
        read = [_over(t.buffer, lambda e: Evaluate(Call("observe", (e,), i64))) for t in self.inputs]
        written = [_over(t.buffer, lambda e: Store(e.buffer, e.indices, Call("unknown", (), e.dtype))) for t in self.outputs]
        body = ExternCall(f.symbol, args, seq(*read, *written), f.status)
        return Block(name(self.name), (), (), TRUE, body, None, (ORDERED, (OPAQUE, f.symbol)))


def _first(b: Buffer) -> Load:
    return Load(b, (ZERO,) * b.rank)


def _over(b: Buffer, touch: Callable[[Load], Stmt]) -> Stmt:
    """Something done to every element of a buffer."""
    at = [Var(f"a{k}", i64) for k in range(b.rank)]
    s = touch(Load(b, tuple(at)))
    for v, d in zip(reversed(at), reversed(b.shape), strict=True):
        s = For(v, ZERO, d, s)
    return s


def call(function: ExternFunction | str, *args: Tensor | IntoExpr) -> Calling:
    """A call with arguments in the order of the C function's: a tensor is passed as the address of its first element, the
    others following row by row, a Python int as int64_t, a float as double, an expression as what it is (i32, i64, u64, f32,
    f64). A string names a function of the process. Raises UserError "compute-invalid"."""
    f = extern_function(function) if isinstance(function, str) else function
    passed: list[Tensor | Expr] = []
    for a in args:
        e = a if isinstance(a, Tensor) else const(a, f64) if isinstance(a, float) else expr(a)
        if isinstance(e, Expr):
            if e.dtype.name not in _NUMBERS:
                raise _wrong(f"{f.symbol} is passed {e}, which is {e.dtype}", f"pass one of {', '.join(sorted(_NUMBERS))}")
            if any(isinstance(n, Load) for n in walk(e)):
                raise _wrong(f"{f.symbol} is passed the element {e} of a tensor", "pass the tensor, and read it there")
        passed.append(e)
    return Calling(f, tuple(passed))


def extern(shape: Iterable[Any], inputs: Sequence[Tensor], body: Any, name: str = "extern",
           dtype_: DType | str | Sequence[DType | str] = "f32") -> Any:
    """Tensors that something outside of the compute language computes from `inputs`; what they are not passed it may not
    read.

    `shape`: of the result, or a list of shapes for several (a tuple of tensors then comes back); `dtype_`: their element
    type, or one for each. `body`:
    - a function (inputs, outputs) → `call(…)`, both lists of tensors;
    - a C function (`extern_function`, or the name of one that the process has): it gets the addresses of inputs and outputs,
      then every dimension of theirs in the same order as int64_t: `void f(const T *x, T *y, int64_t x0, int64_t y0)`;
    - a kernel of the kernel language, whose blocks then stand among the others and are scheduled with them.
    Raises UserError "compute-invalid".
    """
    dims = list(shape)
    several = bool(dims) and all(isinstance(d, tuple | list) for d in dims)
    shapes = [tuple([expr(d) for d in s]) for s in (dims if several else [dims])]
    kinds = [dtype_] * len(shapes) if isinstance(dtype_, str | DType) else list(dtype_)
    if not shapes or len(kinds) != len(shapes):
        raise _wrong(f"{name} has {len(shapes)} shapes and {len(kinds)} element types")
    types = [dtype(t) for t in kinds]
    if isinstance(body, Kernel):
        return _of_kernel(body, inputs, shapes, types, name)
    stage = Extern(name, (), ZERO, inputs=tuple(dict.fromkeys(inputs)))
    suffix = [""] if not several else [f"_{k}" for k in range(len(shapes))]
    stage.outputs = tuple([Tensor(Buffer(name + s, t, d), stage) for s, t, d in zip(suffix, types, shapes, strict=True)])
    stage.calling = _calling(body, list(inputs), list(stage.outputs), name)
    _check(stage)
    return stage.outputs if several else stage.outputs[0]


def _calling(body: Any, ins: list[Tensor], outs: list[Tensor], name: str) -> Calling:
    if isinstance(body, str | ExternFunction):
        return call(body, *ins, *outs, *[d for t in (*ins, *outs) for d in t.shape])
    made = body(ins, outs) if callable(body) else body
    if not isinstance(made, Calling):
        raise _wrong(f"the body of {name} is {made!r}, no call", "return call(function, …) from it")
    return made


def _check(s: Extern) -> None:
    known = {*s.inputs, *s.outputs}
    for t in [a for a in s.calling.args if isinstance(a, Tensor)]:
        if t not in known:
            raise _wrong(f"{s.name} passes {t.name}, which is neither an input nor an output of it")
    for t in (*s.inputs, *s.outputs):
        if t.buffer.data is not None:
            raise _wrong(f"{s.name} reads the table {t.name}, which has no address", "copy it by a compute")
        if t.dtype.bits < 8:
            raise _wrong(f"{s.name} is about {t.name}: elements {t.dtype} have no address", "cast them before")


def _of_kernel(k: Kernel, inputs: Sequence[Tensor], shapes: Sequence[tuple[Expr, ...]], types: Sequence[DType],
               name: str) -> Any:
    made = k(*inputs)
    results = made if isinstance(made, tuple) else (made,)
    got, want = [(t.dtype, t.shape) for t in results], list(zip(types, shapes, strict=True))
    if got != want:
        def shown(found: Any) -> str:
            return ", ".join(f"{t}[{', '.join(map(repr, d))}]" for t, d in found)
        raise _wrong(f"{name}: the kernel {k.name} makes {shown(got)}, not {shown(want)}")
    return made


def _wrong(message: str, hint: str = "") -> UserError:
    return UserError("compute-invalid", message, hint=hint)


"""The kernel language: a decorated Python function becomes a loop program, for what the compute language cannot say.

    from tilewright.tensor.script import f32, kernel

    @kernel
    def running_sum(x: f32["rows", "n"], y: f32["rows", "n"]):
        for i in range(rows):
            y[i, 0] = x[i, 0]
            for j in range(1, n):
                y[i, j] = y[i, j - 1] + x[i, j]

In: the function's source, which is parsed and never run. Out: a `Kernel`, whose program is unscheduled blocks like that
of the compute language: rules, primitives, code generators and interpreters know no difference.

A parameter is a scalar (`a: f32`) or a buffer, with sizes that are numbers, or names: a name in quotes is a symbolic
size, at least 1, one without is a number of the surrounding Python. Statements: `for … in range(…)` (also `grid(n, m)`, and
`parallel`, `vectorized`, `unrolled`, which are proved legal), `if`/`else`, `name = expression` (a name is given one
value), stores `y[i] = …` and `y[i] += …`, and `acc = local(f32, 4)` for memory of the kernel's own. Expressions:
arithmetic, comparisons, `a if c else b` (only the chosen side is evaluated), element types as conversions (`f32(i)`),
`min`, `max`, `select`, and the intrinsics of the loop IR by name (`exp`, `sqrt`, `erf`, …). Every index is proved to be
inside of its buffer; one that comes from data is clamped (`min(max(k, 0), n - 1)`) or answered for: `x[unchecked(k)]`.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewright.core import dtype as types
from tilewright.core.dtype import DType
from tilewright.core.errors import UserError
from tilewright.loop.ir import ZERO, Block, Buffer, Expr, IntoExpr, Program, Seq, Stmt, Var, const
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import buffers_written, free_vars, fresh_copy, substitute
from tilewright.tensor.compute import Stage, Tensor
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import blocks
from tilewright.tensor.script_parser import Annotated, parse_function


class Element:
    """An element type in a parameter's annotation, `f32["n", 4]`, and a conversion within a kernel, `f32(i)`."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype

    def __getitem__(self, sizes: Any) -> Annotated:
        return Annotated(self.dtype, sizes if isinstance(sizes, tuple) else (sizes,))

    def __repr__(self) -> str:
        return self.dtype.name


f64, f32, f16, bf16 = (Element(t) for t in (types.f64, types.f32, types.f16, types.bf16))
i64, i32, i16, i8 = (Element(t) for t in (types.i64, types.i32, types.i16, types.i8))
u64, u32, u16, u8 = (Element(t) for t in (types.u64, types.u32, types.u16, types.u8))
boolean = Element(types.boolean)


class Kernel:
    """A program that was written as a Python function. `program`: its blocks, not scheduled but for loops that the
    function asks to be parallel, vectorized or unrolled; `parameters`: its buffers and scalars by name, then its sizes."""

    def __init__(self, schedule: Schedule, doc: str) -> None:
        self._schedule = schedule
        self.__doc__ = doc

    @property
    def program(self) -> Program:
        return self._schedule.program

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def parameters(self) -> dict[str, Var | Buffer]:
        return {p.name: p for p in self.program.params}

    def schedule(self) -> Schedule:
        """A schedule to continue; each call gives another."""
        return Schedule(self.program)

    def __str__(self) -> str:
        return str(self.program)

    def __call__(self, *operands: Tensor | IntoExpr) -> Any:
        """The kernel as a stage of the compute language: tensors and numbers for its parameters, without those that it
        stores to; these are what comes back (a Tensor, or a tuple of them). Its blocks are scheduled with those around.
        Raises UserError "compute-invalid": their number, a rank, a dtype or a size does not fit."""
        return inlined(self.program, operands)


@dataclass(eq=False)
class _Inlined(Stage):
    """A kernel among other stages: its program with other buffers and sizes."""
    statement: Stmt = field(default_factory=lambda: Seq(()))

    def nest(self, name: Callable[[str], str]) -> Stmt:
        return _renamed(fresh_copy(self.statement), name)


def _renamed(s: Stmt, name: Callable[[str], str]) -> Stmt:
    if isinstance(s, Block):
        return s.replace(name=name(s.name))
    return s.map(lambda c: _renamed(c, name) if isinstance(c, Stmt) else c)


def inlined(program: Program, operands: Sequence[Tensor | IntoExpr]) -> Any:
    """The tensors that a program stores to, of the operands for its other parameters."""
    written = buffers_written(program.body)
    sizes = {v for b in program.params if isinstance(b, Buffer) for d in b.shape for v in free_vars(d)}
    wanted = [p for p in program.params if p not in written and p not in sizes]
    if len(operands) != len(wanted):
        names = ", ".join(p.name for p in wanted)
        raise _wrong(f"{program.name} takes {len(wanted)} operands ({names}), not {len(operands)}")
    renamed: dict[Any, Any] = {}
    for p, given in zip(wanted, operands, strict=True):
        if isinstance(p, Buffer):
            _bind(program, p, given, renamed)
        elif isinstance(given, Tensor):
            raise _wrong(f"{program.name}: {p.name} is a scalar, not a tensor", "give an element of it")
        else:
            renamed[p] = given.cast(p.dtype) if isinstance(given, Expr) else const(given, p.dtype)
    open_sizes = [v.name for v in sizes if v not in renamed]
    if open_sizes:
        raise _wrong(f"{program.name}: no operand says the size {open_sizes[0]}")
    stage = _Inlined(program.name, (), ZERO, inputs=tuple([t for t in operands if isinstance(t, Tensor)]))
    results = []
    for p in program.params:
        if isinstance(p, Buffer) and p in written:
            renamed[p] = Buffer(p.name, p.dtype, tuple([simplify(substitute(d, renamed)) for d in p.shape]))
            results.append(Tensor(renamed[p], stage))
    stage.outputs, stage.statement = tuple(results), substitute(program.body, renamed)
    return results[0] if len(results) == 1 else tuple(results)


def _bind(program: Program, p: Buffer, given: Any, renamed: dict[Any, Any]) -> None:
    """Put a tensor in the place of a buffer; symbolic sizes take its sizes."""
    if not isinstance(given, Tensor):
        raise _wrong(f"{program.name}: {p.name} is a buffer, not {given!r}")
    if given.dtype is not p.dtype or given.rank != p.rank:
        raise _wrong(f"{program.name}: {p.name} is {p.dtype} of rank {p.rank}, not {given.dtype} of rank {given.rank}")
    for d, n in zip(p.shape, given.shape, strict=True):
        if isinstance(d, Var) and d not in renamed:
            renamed[d] = n
        elif simplify(substitute(d, renamed)) != simplify(n):
            raise _wrong(f"{program.name}: a size of {p.name} is {substitute(d, renamed)!r}, {given.name} has {n!r}")
    renamed[p] = given.buffer


def _wrong(message: str, hint: str = "") -> UserError:
    return UserError("compute-invalid", message, hint=hint)


def kernel(function: Callable[..., Any]) -> Kernel:
    """Parse a Python function into a kernel. Raises UserError "kernel-syntax" (what, and the line in the user's file):
    anything that is not of the language, dtypes that do not match, an index that is not proved to be inside; and
    ScheduleError for a loop that may not be parallel or vectorized."""
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise UserError("kernel-syntax", f"the source of {function!r} cannot be read",
                        hint="define the function in a file, not in an interactive session") from error
    around = inspect.getclosurevars(function)
    parsed = parse_function("".join(lines), inspect.getsourcefile(function) or "?", first,
                            {**around.builtins, **around.globals, **around.nonlocals, **function.__globals__})
    made = Schedule(parsed.program)
    for block in blocks(parsed.program):
        made.loops(made.block(block.name))  # handles of all loops
    for loop, kind in parsed.kinds:
        {"parallel": made.parallel, "vectorized": made.vectorize, "unrolled": made.unroll}[kind](loop)
    return Kernel(made, inspect.getdoc(function) or "")

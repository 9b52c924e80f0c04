"""transform_layout: a buffer's elements in another order in memory, everywhere it is used.

    transform_layout(C, W, lambda n, k: [n // 16, k, n % 16])
    W: f32[64, 32],  W[n, k]     →     W: f32[4, 32, 16],  W[n // 16, k, n % 16]

Weights (parameters named in the program's attribute "weights") are laid out anew once, when a model is compiled, by a
*prepack program*, which the schedule hands out in `prepacks`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilewright.core.node import transform
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    Address,
    Allocate,
    Block,
    Buffer,
    Expr,
    For,
    IterVar,
    Load,
    Program,
    Seq,
    Stmt,
    Store,
    Var,
    const,
    expr,
    seq,
)
from tilewright.tensor.regions import accesses
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError, edit, find_block, is_parameter, iterate
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra

NAME = "transform_layout"
IndexMap = Callable[..., Sequence[Any]]


@primitive
def transform_layout(sch: Schedule, block: BlockRef, buffer: str, index_map: IndexMap, pad_value: float | None = None,
                     allow_interface: bool = False) -> None:
    """Store `buffer`, which `block` uses, by other indices: element i of it goes to index_map(*i).

    The map must be quasi-affine and send different elements to different places. The new shape is the smallest box that
    holds them; places that no element goes to hold `pad_value` in prepacked weights and are undefined elsewhere.
    Raises ScheduleError: no such buffer, a map that is not one to one, a parameter that is no weight.
    """
    program = sch.program
    b = find_block(program, block)
    old = next((a.buffer for part in accesses(b) for a in part if a.buffer.name == buffer), None)
    if old is None:
        raise ScheduleError(NAME, f"block {b.name} uses no buffer {buffer!r}", program, block)
    weight = is_parameter(program, old) and buffer in program.attr("weights", ())
    if is_parameter(program, old) and not weight and not allow_interface:
        raise ScheduleError(NAME, f"{buffer} is an input or output: its layout is the caller's", program, block)
    if old.strides is not None or old.data is not None:
        raise ScheduleError(NAME, f"{buffer} has strides or is a table", program, block)
    axes = tuple([Var(f"x{k}") for k in range(old.rank)])
    loops = [For(v, ZERO, d, Seq(())) for v, d in zip(axes, old.shape, strict=True)]
    algebra = Algebra(loops)
    places = [algebra.simplify(expr(e)) for e in index_map(*axes)]
    if not algebra.determine(places, {f.var: f for f in loops}):
        raise ScheduleError(NAME, f"the map to [{', '.join(map(repr, places))}] is not shown to be one to one", program,
                            block)
    shape: list[Expr] = []
    for e in places:
        span = algebra.span(e, {f.var: f for f in loops})
        least, most = algebra.known.interval(e)
        if least is None or least < 0:
            raise ScheduleError(NAME, f"the index {e} may be negative", program, block)
        if most is not None:
            shape.append(const(most + 1))
        elif span is not None:
            shape.append(algebra.simplify(span.lo + span.width + 1))
        else:
            raise ScheduleError(NAME, f"the index {e} has no known bound", program, block)
    new = Buffer(old.name, old.dtype, tuple(shape), old.scope, None, old.packing)
    sch.program = _rewrite(program, old, new, index_map)
    if weight:
        sch.prepacks[buffer] = prepack_program(old, new, index_map, pad_value, sch.prepacks.get(buffer))


def _rewrite(program: Program, old: Buffer, new: Buffer, index_map: IndexMap) -> Program:
    """The program with `new` for `old` and all indices mapped, simplified in each block's domain."""
    result = program.replace(params=tuple([new if p is old else p for p in program.params]))
    for s in list(iterate(program.body)):
        if isinstance(s, Block):
            algebra = Algebra([For(it.var, ZERO, it.extent, Seq(())) for it in s.iters])

            def move(n: Any, algebra: Algebra = algebra) -> Any:
                if isinstance(n, Load | Store | Address) and n.buffer is new:
                    return n.replace(indices=tuple([algebra.simplify(expr(e)) for e in index_map(*n.indices)]))
                return new if n is old else n

            mapped = transform(s, move)
            if mapped is not s:
                result = edit(result, find_block(result, BlockRef(s.name)), mapped)
    for s in list(iterate(result.body)):
        if isinstance(s, Allocate) and s.buffer is old:
            result = edit(result, s, s.replace(buffer=new))
    return result


def prepack_program(old: Buffer, new: Buffer, index_map: IndexMap, pad_value: float | None,
                    before: Program | None) -> Program:
    """The program that lays a weight out: parameters (as it was, as it becomes); fills the places between first."""
    if before is not None:
        raise ScheduleError(NAME, f"{old.name} has been laid out already", before)
    source = Buffer("source", old.dtype, old.shape)
    target = Buffer("packed", new.dtype, new.shape)
    fill: Stmt | None = None
    if pad_value is not None and _size(old) != _size(new):
        fill = _nest("fill", new.shape, lambda i: Store(target, i, const(pad_value, new.dtype)))

    def copy(i: tuple[Expr, ...]) -> Stmt:
        algebra = Algebra([For(v, ZERO, d, Seq(())) for v, d in zip(i, old.shape, strict=True) if isinstance(v, Var)])
        return Store(target, tuple([algebra.simplify(expr(e)) for e in index_map(*i)]), Load(source, i))

    body = seq(fill, _nest("pack", old.shape, copy))
    return Program(f"pack_{old.name}", (source, target), body, (("noalias", True), ("weights", ())))


def _size(b: Buffer) -> Expr:
    n: Expr = const(1)
    for d in b.shape:
        n = n * d
    return n


def _nest(name: str, shape: Sequence[Expr], store: Callable[[tuple[Expr, ...]], Stmt]) -> Stmt:
    """A block over a whole shape in serial loops."""
    iters = tuple([IterVar(Var(f"v{k}"), d) for k, d in enumerate(shape)])
    loops = [Var(f"i{k}") for k in range(len(iters))]
    out: Stmt = Block(name, iters, tuple(loops), TRUE, store(tuple([it.var for it in iters])))
    for v, d in zip(reversed(loops), reversed(shape), strict=True):
        out = For(v, ZERO, d, out)
    return out

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
    Const,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Guard,
    IterVar,
    Load,
    Lt,
    Program,
    Seq,
    Stmt,
    Store,
    Var,
    as_int,
    const,
    seq,
)
from tilewright.tensor.regions import conjuncts, domain_loops
from tilewright.tensor.schedule.index_map import IndexFunction, IndexMap
from tilewright.tensor.schedule.schedule import Layout, Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    edit,
    find_block,
    find_buffer,
    is_parameter,
    iterate,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of

NAME = "transform_layout"


@primitive
def transform_layout(sch: Schedule, block: BlockRef, buffer: str, index_map: IndexFunction, pad_value: float | None = None,
                     allow_interface: bool = False) -> None:
    """Store `buffer`, which `block` uses, by other indices: element i of it goes to index_map(*i).

    The map must be quasi-affine and send different elements to different places. The new shape is the smallest box that
    holds them; places that no element goes to hold `pad_value` in prepacked weights and are undefined elsewhere. A weight
    may be laid out several times: its prepack program does all at once, and the last `pad_value` counts.
    `allow_interface` permits the layout of other parameters to change: the caller then lays them out itself.
    Raises ScheduleError: no such buffer, a map that is not one to one, a parameter that is no weight.
    """
    program = sch.program
    old = find_buffer(program, block, buffer)
    if old is None:
        raise ScheduleError(NAME, f"block {block.name} uses no buffer {buffer!r}", program, block)
    weight = is_parameter(program, old) and buffer in program.attr("weights", ())
    if is_parameter(program, old) and not weight and not allow_interface:
        raise ScheduleError(NAME, f"{buffer} is an input or output: its layout is the caller's", program, block)
    if old.strides is not None or old.data is not None:
        raise ScheduleError(NAME, f"{buffer} has strides or is a table", program, block)
    if weight and any(as_int(d) is None for d in old.shape):
        raise ScheduleError(NAME, f"the weight {buffer} has a symbolic size: it cannot be laid out while compiling", program,
                            block)
    places = IndexMap.of(index_map, old.rank)
    known = {*places.axes, *[p for p in program.params if isinstance(p, Var)]}
    stray = {v for e in places.places for v in vars_of(e)} - known
    if stray:
        raise ScheduleError(NAME, f"the map uses {stray.pop().name}, which is no index and no size of the program", program,
                            block)
    shape = _shape(program, block, old, places, pad_value is not None)
    new = Buffer(old.name, old.dtype, shape, old.scope, None, old.packing)
    if weight and pad_value is not None:
        program = _without_guards(program, old, new, places, pad_value)
    sch.program = relaid(program, old, new, places)
    if weight:
        layout = Layout(old, places, pad_value)
        if buffer in sch.layouts:
            before = sch.layouts[buffer]
            layout = Layout(before.original, before.index_map.then(places),
                            before.pad_value if pad_value is None else pad_value)
        sch.layouts = {**sch.layouts, buffer: layout}
        sch.prepacks = {**sch.prepacks, buffer: prepack_program(layout, new)}


def _shape(program: Program, block: BlockRef, old: Buffer, places: IndexMap, padded: bool) -> tuple[Expr, ...]:
    """The smallest box from zero that holds all places, with whole digits (x % k takes k) if there is padding; refused
    unless the places are shown to differ."""
    loops = {v: For(v, ZERO, d, Seq(())) for v, d in zip(places.axes, old.shape, strict=True)}
    algebra = Algebra(list(loops.values()))
    if not algebra.determine(places.places, loops):
        refuse(NAME, f"the map {places} is not shown to be one to one", program, block)
    shape: list[Expr] = []
    for place in places.places:
        e = place if padded and isinstance(place, FloorMod) else algebra.simplify(place)
        least = algebra.known.interval(e)[0]
        span = algebra.span(e, loops)
        if (least is None or least < 0) and (span is None or not algebra.at_most(ZERO, span.lo)):
            raise ScheduleError(NAME, f"the index {e} may be negative", program, block)
        digit = as_int(e.b) if padded and isinstance(e, FloorMod) else None
        shape.append(const(digit) if digit else _end(program, block, e, loops, algebra))
    return tuple(shape)


def _end(program: Program, block: BlockRef, e: Expr, loops: dict[Var, For], algebra: Algebra) -> Expr:
    """The least number that an index surely does not reach."""
    most = algebra.known.interval(e)[1]
    if most is not None and all(as_int(f.extent) is not None for f in loops.values()):
        return const(most + 1)
    span = algebra.span(e, loops)  # of a symbolic size what it is, not the most that it may be
    if span is not None:
        return algebra.simplify(span.lo + span.width + 1)
    if isinstance(e, FloorDiv) and (k := as_int(e.b)) is not None and k > 0:
        return algebra.simplify((_end(program, block, e.a, loops, algebra) + (k - 1)) // k)
    if most is not None:
        return const(most + 1)
    raise ScheduleError(NAME, f"the index {e} has no known bound", program, block)


def relaid(program: Program, old: Buffer, new: Buffer, places: IndexMap) -> Program:
    """The program with `new` for `old` and all indices mapped, simplified in each block's domain."""
    result = program.replace(params=tuple([new if p is old else p for p in program.params]))
    for s in list(iterate(program.body)):
        if isinstance(s, Block):
            mapped = _mapped(s, old, new, places)
            if mapped is not s:
                result = edit(result, find_block(result, BlockRef(s.name)), mapped)
        elif isinstance(s, Allocate) and s.buffer is old:
            here = next(a for a in iterate(result.body) if isinstance(a, Allocate) and a.buffer is old)
            result = edit(result, here, here.replace(buffer=new))
    return result


def _without_guards(program: Program, old: Buffer, new: Buffer, places: IndexMap, pad_value: float) -> Program:
    """Drop the guards that keep loads of a weight within its old shape and give `pad_value` beyond it, where those loads
    will find just that in the padding of the new layout.

        if_then_else(n < 24, W[n, k], 0)    →    W'[n // 16, k, n % 16],  0 for n = 24 … 31
    """
    for s in list(iterate(program.body)):
        if isinstance(s, Block):
            algebra = Algebra([For(it.var, ZERO, it.extent, Seq(())) for it in s.iters])

            def open_up(n: Any, algebra: Algebra = algebra) -> Any:
                drop = (isinstance(n, Guard) and isinstance(n.a, Load) and n.a.buffer is old and isinstance(n.b, Const)
                        and n.b.value == pad_value and _reads_padding(n, n.a, new, places, algebra))
                return n.a if drop else n

            opened = transform(s, open_up)
            if opened is not s:
                program = edit(program, s, opened)
    return program


def _reads_padding(guard: Guard, load: Load, new: Buffer, places: IndexMap, algebra: Algebra) -> bool:
    """Whether a guard only tests the load's indices against its buffer's shape, and everything that the load can reach
    lies in the new buffer, at places of its own."""
    shape = load.buffer.shape
    for c in conjuncts(guard.cond):
        if not (isinstance(c, Lt) and any(c == Lt(i, d) for i, d in zip(load.indices, shape, strict=True))):
            return False
    mapped = [algebra.simplify(e) for e in places(*load.indices)]
    if not all(algebra.at_most(ZERO, e) and algebra.at_most(e + 1, d) for e, d in zip(mapped, new.shape, strict=True)):
        return False
    reach = [algebra.upper(i) for i in load.indices]
    if any(r is None for r in reach):
        return False
    wide = {v: For(v, ZERO, const((r or 0) + 1), Seq(())) for v, r in zip(places.axes, reach, strict=True)}
    return Algebra(list(wide.values())).determine(places.places, wide)


def _mapped(block: Block, old: Buffer, new: Buffer, places: IndexMap) -> Block:
    algebra = Algebra(domain_loops(block))

    def move(n: Any) -> Any:
        if isinstance(n, Load | Store | Address) and n.buffer is new:  # its buffer, a child, has been replaced before it
            return n.replace(indices=tuple([algebra.simplify(e) for e in places(*n.indices)]))
        return new if n is old else n

    return transform(block, move)


def prepack_program(layout: Layout, new: Buffer) -> Program:
    """The program that lays a weight out: parameters (as it was, as it becomes). Fills between the elements first."""
    old = layout.original
    source = Buffer("source", old.dtype, old.shape)
    target = Buffer("packed", new.dtype, new.shape)
    fill: Stmt | None = None
    if layout.pad_value is not None and _size(old) != _size(new):
        fill = _nest("fill", new.shape, lambda i: Store(target, i, const(layout.pad_value, new.dtype)))

    def copy(i: tuple[Var, ...]) -> Stmt:
        algebra = Algebra([For(v, ZERO, d, Seq(())) for v, d in zip(i, old.shape, strict=True)])
        return Store(target, tuple([algebra.simplify(e) for e in layout.index_map(*i)]), Load(source, i))

    body = seq(fill, _nest("pack", old.shape, copy))
    return Program(f"pack_{old.name}", (source, target), body, (("noalias", True), ("weights", ())))


def _size(b: Buffer) -> int:
    n = 1
    for d in b.shape:
        n *= as_int(d) or 0
    return n


def _nest(name: str, shape: Sequence[Expr], store: Callable[[tuple[Var, ...]], Stmt]) -> Stmt:
    """A block over a whole shape in serial loops."""
    iters = tuple([IterVar(Var(f"v{k}"), d) for k, d in enumerate(shape)])
    loops = [Var(f"i{k}") for k in range(len(iters))]
    out: Stmt = Block(name, iters, tuple(loops), TRUE, store(tuple([it.var for it in iters])))
    for v, d in zip(reversed(loops), reversed(shape), strict=True):
        out = For(v, ZERO, d, out)
    return out

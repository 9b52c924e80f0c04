"""compute_inline, reverse_compute_inline: a block disappears into its readers, or into the block whose result it reads.

    B[i] = A[i] + 1                             B[i] = A[i] + 1
    C[i] = B[i] * 2    →  C[i] = (A[i]+1)*2     P[i + 1] = B[i]    →  P[i + 1] = A[i] + 1
"""
from __future__ import annotations

from tilewright.core.node import transform
from tilewright.loop.ir import ONE, ZERO, Block, Buffer, Expr, For, Load, Program, Seq, Store, Var
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import (
    Access,
    Box,
    accesses,
    conjunction,
    conjuncts,
    consumers,
    contains,
    inputs,
    own_conditions,
    readers,
    writers,
)
from tilewright.tensor.schedule.nest import box_of_domain, invert, missing_input, runs_whole_domain, shared_writer
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    deallocate,
    edit,
    find_block,
    is_parameter,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of


@primitive
def compute_inline(sch: Schedule, block: BlockRef) -> None:
    """Replace every load of what a spatial block computes by the expression that it stores.

    Legal if the block is one store without reduction, at its own iteration variables (each once, with constant offsets),
    into a buffer that is no parameter and that nothing else writes. Raises ScheduleError.
    """
    program = sch.program
    b = find_block(program, block)
    store = _single_store(sch, "compute_inline", b)
    buffer = store.buffer
    if is_parameter(program, buffer):
        raise ScheduleError("compute_inline", f"{buffer.name} is a parameter: it must be stored", program, block)
    if len(writers(program, buffer)) > 1:
        refuse("compute_inline", f"another block writes {buffer.name}, too", program, block)
    if own_conditions(b):
        refuse("compute_inline", f"it computes only a part of {buffer.name}", program, block)
    if not consumers(program, b):
        raise ScheduleError("compute_inline", f"nothing reads {buffer.name}", program, block)
    inverse = _inverse(store.indices, b)
    if inverse is None:
        refuse("compute_inline", "its store is not at its own iteration variables", program, block)
        return

    def value_at(n: object) -> object:
        if isinstance(n, Load) and n.buffer is buffer:
            mapping = {v: position(n.indices) for v, position in inverse.items()}
            return substitute(store.value, mapping)
        return n

    new = edit(program, b, None)
    for reader in readers(program, buffer):
        old = find_block(new, BlockRef(reader.name))
        new = edit(new, old, _simplified(transform(old, value_at)))
    sch.program = deallocate(new, buffer)


@primitive
def reverse_compute_inline(sch: Schedule, block: BlockRef) -> None:
    """Merge a spatial block into the spatial block that makes what it reads: the producer then stores the block's result.

    Legal if it reads exactly one computed buffer, at its own iteration variables (each once, with constant offsets), the
    producer is that buffer's only writer and the block its only reader. Raises ScheduleError.
    """
    program = sch.program
    b = find_block(program, block)
    store = _single_store(sch, "reverse_compute_inline", b)
    made = [x for x in inputs(b) if writers(program, x) and not is_parameter(program, x)]
    if len(made) != 1:
        raise ScheduleError("reverse_compute_inline", "it must read exactly one buffer computed by another block "
                            f"(it reads {len(made)})", program, block)
    (buffer,) = made
    sources = writers(program, buffer)
    if len(sources) != 1 or len(readers(program, buffer)) != 1:
        refuse("reverse_compute_inline", f"{buffer.name} has other writers or readers", program, block)
    producer = sources[0]
    made_by = _single_store(sch, "reverse_compute_inline", producer)
    loads = {n.indices for n in _loads(store.value) if n.buffer is buffer}
    at = _instance_reading(b, next(iter(loads)), buffer, producer, made_by) if len(loads) == 1 else None
    if at is None:
        raise ScheduleError("reverse_compute_inline", f"an element of {buffer.name} does not tell which instance reads it",
                            program, block)
    why = _not_all_made(program, producer, b, next(iter(loads)), buffer) or shared_writer(program, b)
    if why is not None:
        refuse("reverse_compute_inline", why, program, block)

    def result(n: object) -> object:
        return made_by.value if isinstance(n, Load) and n.buffer is buffer else n

    value = transform(substitute(store.value, at), result)
    indices = tuple([substitute(i, at) for i in store.indices])
    algebra = Algebra(_domain(producer))
    cuts = [substitute(c, at) for c in own_conditions(b)]
    for it in b.iters:
        e = at[it.var]
        if not algebra.at_most(ZERO, e):
            cuts.append(e >= 0)
        if not algebra.at_most(e + 1, it.extent):
            cuts.append(e < it.extent)
    merged = producer.replace(body=Store(store.buffer, indices, value),
                              predicate=conjunction([*conjuncts(producer.predicate), *cuts]))
    new = edit(edit(program, b, None), producer, _simplified(merged))
    why = missing_input(new, find_block(new, BlockRef(producer.name)))
    if why is not None:
        refuse("reverse_compute_inline", why, program, block)
    sch.program = deallocate(new, buffer)


def _instance_reading(b: Block, indices: tuple[Expr, ...], buffer: Buffer, producer: Block,
                      made_by: Store) -> dict[Var, Expr] | None:
    """The iteration variables of the one instance of `b` that reads what an instance of `producer` stores, or None."""
    domain = Algebra(_domain(producer))
    element = Box(buffer, made_by.indices, (ONE,) * buffer.rank, True)
    part = invert(Access(buffer, indices), b, element, domain)
    if any(domain.constant(extent) != 1 for _, extent in part):
        return None
    at = {i.var: start for i, (start, _) in zip(b.iters, part, strict=True)}
    same = all(domain.equal(substitute(i, at), w) for i, w in zip(indices, made_by.indices, strict=True))
    return at if same else None


def _not_all_made(program: Program, producer: Block, b: Block, indices: tuple[Expr, ...], buffer: Buffer) -> str | None:
    """Why an instance of `b` may read (perhaps under a condition) an element that `producer` has no instance for."""
    made = box_of_domain(producer, [a for a in accesses(producer)[1] if a.buffer is buffer])
    read = box_of_domain(b, [Access(buffer, indices)])
    if made.exact and runs_whole_domain(program, producer) and contains(made, read, Algebra([]), clip=False):
        return None
    return f"block {producer.name} may not make all of {buffer.name}: the rest of block {b.name} would not be run"


def _single_store(sch: Schedule, name: str, b: Block) -> Store:
    if b.init is not None or any(it.kind == "reduce" for it in b.iters) or not isinstance(b.body, Store):
        raise ScheduleError(name, f"block {b.name} is not a single store without reduction", sch.program, BlockRef(b.name))
    if any(n.buffer is b.body.buffer for n in _loads(b.body.value)):
        raise ScheduleError(name, f"block {b.name} reads what it writes", sch.program, BlockRef(b.name))
    return b.body


def _loads(e: Expr) -> list[Load]:
    out: list[Load] = []
    stack: list[object] = [e]
    while stack:
        n = stack.pop()
        if isinstance(n, Load):
            out.append(n)
        stack.extend(n.children())  # type: ignore[attr-defined]
    return out


class _Position:
    """The value of an iteration variable from the indices of an access: index[dim] - offset."""

    def __init__(self, dim: int, offset: Expr | int) -> None:
        self.dim, self.offset = dim, offset

    def __call__(self, indices: tuple[Expr, ...]) -> Expr:
        return indices[self.dim] - self.offset if not isinstance(self.offset, int) or self.offset else indices[self.dim]


def _inverse(indices: tuple[Expr, ...], b: Block) -> dict[Var, _Position] | None:
    """How to find each iteration variable from indices of the form v + constant, each variable once; None otherwise.
    A variable of extent one that is in no index is zero."""
    own = {it.var: it for it in b.iters}
    out: dict[Var, _Position] = {}
    algebra = Algebra(_domain(b))
    for dim, e in enumerate(indices):
        used = [v for v in vars_of(e) if v in own]
        if not used:
            continue
        if len(used) > 1 or used[0] in out:
            return None
        offset = algebra.simplify(e - used[0])
        if vars_of(offset):
            return None
        k = algebra.constant(offset)
        out[used[0]] = _Position(dim, offset if k is None else k)
    for v, it in own.items():
        if v not in out:
            if algebra.constant(it.extent) != 1:
                return None
            out[v] = _Zero(0, 0)
    return out


class _Zero(_Position):
    """The value of a variable of extent one."""

    def __call__(self, indices: tuple[Expr, ...]) -> Expr:
        return ZERO


def _domain(b: Block) -> list[For]:
    """Loops over the whole domain of a block, for proofs."""
    return [For(it.var, ZERO, it.extent, Seq(())) for it in b.iters]


def _simplified(b: Block) -> Block:
    """Simplify the indices of a block's body in its domain."""
    algebra = Algebra(_domain(b))

    def tidy(n: object) -> object:
        if isinstance(n, Load | Store):
            new = tuple([algebra.simplify(i) for i in n.indices])
            return n if all(x is y for x, y in zip(new, n.indices, strict=True)) else n.replace(indices=new)
        return n
    return transform(b, tidy)


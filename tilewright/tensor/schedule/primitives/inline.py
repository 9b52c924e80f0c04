"""compute_inline, reverse_compute_inline: a block disappears into its readers, or into the block whose result it reads.

    B[i] = A[i] + 1                             B[i] = A[i] + 1
    C[i] = B[i] * 2    →  C[i] = (A[i]+1)*2     P[i + 1] = B[i]    →  P[i + 1] = A[i] + 1
"""
from __future__ import annotations

from typing import Any

from tilewright.core.node import transform, walk
from tilewright.loop.ir import ONE, ZERO, Address, Binary, Block, Buffer, Expr, For, Load, Program, Store, Var
from tilewright.loop.substitute import substitute
from tilewright.tensor.combiner import reduction_of
from tilewright.tensor.regions import (
    Access,
    Box,
    accesses,
    conjunction,
    conjuncts,
    consumers,
    contains,
    domain_loops,
    inputs,
    own_conditions,
    readers,
    writers,
)
from tilewright.tensor.schedule.counterexamples import other_writer
from tilewright.tensor.schedule.nest import invert
from tilewright.tensor.schedule.proofs import box_of_domain, missing_input, runs_whole_domain, shared_writer
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    blocks,
    deallocate,
    edit,
    find_block,
    is_parameter,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of

Inverse = dict[Var, tuple[int, Expr] | None]
"""Where to find each iteration variable in the indices of an access: (dimension, offset to take off), None: it is zero."""


@primitive
def compute_inline(sch: Schedule, block: BlockRef) -> None:
    """Replace every load of what a spatial block computes by the expression that it stores.

    Legal if the block is one store without reduction, an element tells which instance stores it, and the buffer is no
    parameter and has no other writer. Raises ScheduleError.
    """
    name = "compute_inline"
    program = sch.program
    b = find_block(program, block)
    store = _single_store(sch, name, b)
    buffer = store.buffer
    if is_parameter(program, buffer):
        raise ScheduleError(name, f"{buffer.name} is a parameter: it must be stored", program, block)
    if not consumers(program, b):
        raise ScheduleError(name, f"nothing reads {buffer.name}", program, block)
    _check_no_address(sch, name, buffer)
    if len(writers(program, buffer)) > 1:
        refuse(name, f"another block writes {buffer.name}, too", program, block,
               example=lambda: other_writer(program, b.name))
    if own_conditions(b):
        refuse(name, f"it computes only a part of {buffer.name}", program, block,
               example=lambda: other_writer(program, b.name))

    inverse = _inverse(store.indices, b)
    new = edit(program, b, None)
    for reader in readers(program, buffer):
        domain = Algebra(_domain(reader))

        def value_at(n: Any, domain: Algebra = domain) -> Any:
            if not isinstance(n, Load) or n.buffer is not buffer:
                return n
            at = _solve(inverse, n.indices) if inverse is not None else _instance_at(b, store, n.indices, domain)
            if at is None or n.dtype.lanes > 1:
                raise ScheduleError(name, f"an element of {buffer.name} does not tell which instance stores it", program,
                                    block)
            return substitute(store.value, at)

        new = edit(new, reader, _simplified(transform(reader, value_at)))
    sch.program = _without(sch, "compute_inline", new, buffer, block)


@primitive
def reverse_compute_inline(sch: Schedule, block: BlockRef) -> None:
    """Merge a spatial block into the spatial block that makes what it reads: the producer, which keeps its name, then stores
    the block's result. Where the block reads what several others make, the last of them is the producer.

    A producer that reduces by an operator takes a block that applies the same operator: `D = C + bias` of a sum C becomes
    a sum that starts at the bias (floating-point sums are rounded in another order).

    Legal if an element of the producer's buffer tells which instance of the block reads it, the producer makes all that the
    block reads, is the buffer's only writer and the block its only reader, and what else the block reads is finished at
    the producer's place. Raises ScheduleError.
    """
    name = "reverse_compute_inline"
    program = sch.program
    b = find_block(program, block)
    store = _single_store(sch, name, b)
    producer = _last_producer(program, b)
    if producer is None:
        raise ScheduleError(name, "it reads nothing that another block computes", program, block)
    added: Expr | None = None
    if producer.init is not None:
        added = _operand_beside(store, producer)
        if added is None:
            raise ScheduleError(name, f"block {producer.name} is not a single store without reduction, nor is its result "
                                "only combined with something by the operator that it reduces by", program,
                                BlockRef(producer.name))
        assert isinstance(producer.body, Store)
        made_by = producer.body
    else:
        made_by = _single_store(sch, name, producer)
    buffer = made_by.buffer
    if is_parameter(program, buffer):
        raise ScheduleError(name, f"{buffer.name} is a parameter: it must be stored", program, block)
    _check_no_address(sch, name, buffer)
    if len(writers(program, buffer)) != 1 or len(readers(program, buffer)) != 1:
        raise ScheduleError(name, f"{buffer.name} has other writers or readers", program, block)
    loads = {n.indices: n for n in walk(store.value) if isinstance(n, Load) and n.buffer is buffer}
    read, at = next(iter(loads.values())), None
    if len(loads) == 1:
        inverse = _inverse(read.indices, b)
        at = (_solve(inverse, made_by.indices) if inverse is not None
              else _instance_at(b, read, made_by.indices, Algebra(_domain(producer))))
    if at is None:
        raise ScheduleError(name, f"an element of {buffer.name} does not tell which instance of block {b.name} reads it",
                            program, block)
    why = _not_all_made(program, producer, b, read.indices, buffer) or shared_writer(program, b)
    if why is not None:
        refuse(name, why, program, block)
    merged = _merged(b, store, producer, made_by, at) if added is None else _started_at(b, store, producer, added, at)
    new = edit(edit(program, b, None), producer, merged)
    why = missing_input(new, merged)
    if why is not None:
        refuse(name, why, program, block)
    sch.program = _without(sch, "reverse_compute_inline", new, buffer, block)


def _check_no_address(sch: Schedule, name: str, buffer: Buffer) -> None:
    for q in blocks(sch.program):
        if any(isinstance(n, Address) and n.buffer is buffer for n in walk(q)):
            raise ScheduleError(name, f"block {q.name} takes an address in {buffer.name}, so it must stay in memory",
                                sch.program, BlockRef(q.name))


def _last_producer(program: Program, b: Block) -> Block | None:
    """The last block before `b` that makes something it reads."""
    read = set(inputs(b))
    found: Block | None = None
    for q in blocks(program):
        if q is b:
            return found
        if any(isinstance(n, Store) and n.buffer in read for n in walk(q)):
            found = q
    return found


def _not_all_made(program: Program, producer: Block, b: Block, indices: tuple[Expr, ...], buffer: Buffer) -> str | None:
    """Why an instance of `b` may read (perhaps under a condition) an element that `producer` has no instance for."""
    made = box_of_domain(producer, [a for a in accesses(producer)[1] if a.buffer is buffer])
    read = box_of_domain(b, [Access(buffer, indices)])
    if made.exact and runs_whole_domain(program, producer) and contains(made, read, Algebra([]), clip=False):
        return None
    return f"block {producer.name} may not make all of {buffer.name}: the rest of block {b.name} would not be run"


def _merged(b: Block, store: Store, producer: Block, made_by: Store, at: dict[Var, Expr]) -> Block:
    """The producer, storing what the instance `at` of `b` makes of its value; where there is none, it does nothing."""
    def result(n: Any) -> Any:
        return made_by.value if isinstance(n, Load) and n.buffer is made_by.buffer else n

    value = transform(substitute(store.value, at), result)
    indices = tuple([substitute(i, at) for i in store.indices])
    return _within(b, producer.replace(body=Store(store.buffer, indices, value)), at)


def _operand_beside(store: Store, producer: Block) -> Expr | None:
    """What a store combines the result of the reduction `producer` with, by the operator that it reduces by; else None."""
    reduction = reduction_of(producer)
    v = store.value
    if reduction is None or not reduction.operator or not isinstance(producer.body, Store):
        return None
    if not isinstance(v, Binary) or type(v) is not type(producer.body.value):
        return None
    made = producer.body.buffer
    for result, other in ((v.a, v.b), (v.b, v.a)):
        if isinstance(result, Load) and result.buffer is made and not any(
                isinstance(n, Load) and n.buffer is made for n in walk(other)):
            return other
    return None


def _started_at(b: Block, store: Store, producer: Block, added: Expr, at: dict[Var, Expr]) -> Block:
    """The reduction `producer` into the buffer of `b`, starting at its identity combined with `added`."""
    reduction = reduction_of(producer)
    assert reduction is not None
    indices = tuple([substitute(i, at) for i in store.indices])
    first = reduction.combine(reduction.start, [substitute(added, at)])[0]
    body = reduction.update([store.buffer], indices, reduction.values)
    return _within(b, producer.replace(init=Store(store.buffer, indices, first), body=body), at)


def _within(b: Block, producer: Block, at: dict[Var, Expr]) -> Block:
    """A merged block that does nothing where `b` has no instance."""
    algebra = Algebra(_domain(producer))
    cuts = [substitute(c, at) for c in own_conditions(b)]
    for it in b.iters:
        e = at[it.var]
        if not algebra.at_most(ZERO, e):
            cuts.append(e >= 0)
        if not algebra.at_most(e + 1, it.extent):
            cuts.append(e < it.extent)
    known = dict(producer.attrs)
    attrs = (*producer.attrs, *[(k, v) for k, v in b.attrs if k not in known])
    return _simplified(producer.replace(attrs=attrs, predicate=conjunction([*conjuncts(producer.predicate), *cuts])))


def _without(sch: Schedule, name: str, new: Program, buffer: Buffer, block: BlockRef) -> Program:
    """The edited program without a buffer that nobody computes any more."""
    if any(isinstance(n, Address) and n.buffer is buffer for n in walk(new.body)):
        raise ScheduleError(name, f"another block takes addresses in {buffer.name} (a prefetch?)", sch.program, block)
    return deallocate(new, buffer)


def _single_store(sch: Schedule, name: str, b: Block) -> Store:
    if b.init is not None or any(it.kind == "reduce" for it in b.iters) or not isinstance(b.body, Store):
        raise ScheduleError(name, f"block {b.name} is not a single store without reduction", sch.program, BlockRef(b.name))
    if any(isinstance(n, Load) and n.buffer is b.body.buffer for n in walk(b.body.value)):
        raise ScheduleError(name, f"block {b.name} reads what it writes", sch.program, BlockRef(b.name))
    return b.body


def _inverse(indices: tuple[Expr, ...], b: Block) -> Inverse | None:
    """How to find each iteration variable from indices of the form v + constant, each variable once; None otherwise.
    A variable of extent one that is in no index is zero."""
    own = {it.var: it for it in b.iters}
    out: Inverse = {}
    algebra = Algebra(_domain(b))
    for dim, e in enumerate(indices):
        used = [v for v in vars_of(e) if v in own]
        if not used:
            continue
        if len(used) > 1 or used[0] in out:
            return None
        offset = algebra.simplify(e - used[0])
        if any(v in own for v in vars_of(offset)):
            return None
        out[used[0]] = dim, offset
    for v, it in own.items():
        if v not in out:
            if algebra.constant(it.extent) != 1:
                return None
            out[v] = None
    return out


def _solve(inverse: Inverse, indices: tuple[Expr, ...]) -> dict[Var, Expr]:
    """The iteration variables of the instance that accesses the indices."""
    return {v: ZERO if place is None else indices[place[0]] if place[1] == ZERO else indices[place[0]] - place[1]
            for v, place in inverse.items()}


def _instance_at(b: Block, access: Load | Store, element: tuple[Expr, ...], domain: Algebra) -> dict[Var, Expr] | None:
    """The one instance of `b` whose `access` is to `element` (indices over `domain`), or None if that is not shown."""
    box = Box(access.buffer, element, (ONE,) * len(element), True)
    part = invert(Access(access.buffer, access.indices), b, box, domain)
    if any(domain.constant(extent) != 1 for _, extent in part):
        return None
    at = {i.var: start for i, (start, _) in zip(b.iters, part, strict=True)}
    same = all(domain.equal(substitute(i, at), e) for i, e in zip(access.indices, element, strict=True))
    return at if same else None


def _domain(b: Block) -> list[For]:
    """Loops over the whole domain of a block, for proofs."""
    return domain_loops(b)


def _simplified(b: Block) -> Block:
    """Simplify the indices of a block's body in its domain."""
    algebra = Algebra(_domain(b))

    def tidy(n: Any) -> Any:
        if isinstance(n, Load | Store):
            new = tuple([algebra.simplify(i) for i in n.indices])
            return n if all(x is y for x, y in zip(new, n.indices, strict=True)) else n.replace(indices=new)
        return n
    return transform(b, tidy)

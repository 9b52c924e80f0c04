"""Random schedules: applies primitives with random arguments and judges what comes out, and what was refused.

The judge of an applied trace is the interpreter: the scheduled program's results must equal the unscheduled one's bit for
bit. The judge of a refusal forces the edit (`state.unproved`) and looks for what is wrong with it.
"""
from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from tests.tensor.schedule.dependence_trace import Unknown, wrongs
from tests.tensor.schedule.schedule_operators import arguments, results
from tilewright.core.errors import TilewrightError
from tilewright.core.node import alpha_equal, transform, walk
from tilewright.loop.ir import Block, For, Load, Program, Seq, Store, Var, as_int
from tilewright.loop.tensor_intrinsics import tensor_intrinsic
from tilewright.tensor.regions import inputs, outputs, statements
from tilewright.tensor.schedule.index_map import IndexMap
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    blocks,
    explaining,
    iterate,
    loops_around,
    unproved,
)
from tilewright.tensor.schedule.trace import PRIMITIVES

Call = tuple[str, tuple[Any, ...]]


@dataclass
class Tally:
    """What happened over all traces."""
    applied: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    impossible: Counter[str] = field(default_factory=Counter)
    confirmed: Counter[str] = field(default_factory=Counter)
    doubtful: list[tuple[int, str, str, Program, Call]] = field(default_factory=list)

    def __str__(self) -> str:
        names = sorted({*self.applied, *self.refused})
        lines = [f"{'primitive':<22}{'applied':>9}{'refused':>9}{'no edit':>9}{'judged':>8}{'wrong':>7}"]
        doubt = Counter(name for _, name, *_ in self.doubtful)
        for n in names:
            lines.append(f"{n:<22}{self.applied[n]:>9}{self.refused[n]:>9}{self.impossible[n]:>9}"
                         f"{self.confirmed[n] + doubt[n]:>8}{self.confirmed[n]:>7}")
        judged = self.confirmed.total() + len(self.doubtful)
        lines.append(f"refusals judged {judged}, confirmed wrong {self.confirmed.total()} ({self.rate():.1%}); "
                     f"{self.impossible.total()} more had no edit to force")
        return "\n".join(lines)

    def rate(self) -> float:
        judged = self.confirmed.total() + len(self.doubtful)
        return self.confirmed.total() / judged if judged else 1.0


# ---- random calls --------------------------------------------------------------------------------------------------------
def _block(rng: random.Random, p: Program) -> Block:
    return rng.choice(blocks(p))


def _loop(rng: random.Random, p: Program) -> For | None:
    found = [s for s in iterate(p.body) if isinstance(s, For)]
    return rng.choice(found) if found else None


def _split(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    f = _loop(rng, p)
    if f is None:
        return None
    factors: list[int | None] = [rng.choice([1, 2, 3, 4, 5]) for _ in range(rng.choice([1, 1, 2]))]
    factors.insert(rng.randrange(len(factors) + 1), None)
    if rng.random() < 0.2:
        factors = [2, as_int(f.extent) or 1]
    return f.var, factors


def _chain(rng: random.Random, p: Program) -> list[Var]:
    """Some loops that lie inside each other, outermost first."""
    around = loops_around(p, _block(rng, p))
    if len(around) < 2:
        return []
    k = rng.randint(2, min(4, len(around)))
    return [around[i].var for i in sorted(rng.sample(range(len(around)), k))]


def _fuse(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    around = loops_around(p, _block(rng, p))
    if len(around) < 2:
        return None
    a = rng.randrange(len(around) - 1)
    return tuple([f.var for f in around[a:a + rng.choice([2, 2, 3])]])


def _reorder(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    vs = _chain(rng, p)
    rng.shuffle(vs)
    return tuple(vs) or None


def _reschedule(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    """A random order of some loops directly inside each other: unimodular, with digits, or a number of both."""
    around = [f for f in loops_around(p, _block(rng, p)) if f.kind == "serial"]
    if len(around) < 2:
        return None
    a = rng.randrange(len(around) - 1)
    nest = around[a:a + rng.choice([2, 2, 3])]
    if any(outer.body is not inner for outer, inner in pairwise(nest)):
        return None
    kind = rng.choice(["skew", "skew", "turn", "digits", "number"])
    extents = [as_int(f.extent) or 1 for f in nest]

    def order(*v: Any) -> list[Any]:
        if kind == "number":
            number = v[0]
            for x, n in zip(v[1:], extents[1:], strict=True):
                number = number * n + x
            return [number]
        if kind == "digits":
            c = rng.choice([2, 3])
            return [v[0] // c, *v[1:], v[0] % c]
        out = [v[k] for k in rng.sample(range(len(v)), len(v))]
        if kind == "turn":
            k = rng.randrange(len(out))
            return [*out[:k], rng.choice([-3, 0, 2]) - out[k], *out[k + 1:]]
        k, m = rng.sample(range(len(out)), 2)
        return [*out[:k], out[k] + rng.choice([-1, 1, 1, 2]) * out[m], *out[k + 1:]]

    return [f.var for f in nest], IndexMap.of(order, len(nest))


def _partition(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    f = _loop(rng, p)
    if f is None:
        return None
    n = as_int(f.extent) or 2
    return f.var, rng.choice([[1], [-1], [1, -1], [n // 2], [rng.randrange(n + 1)]])


def _pad_einsum(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    reducing = [b for b in blocks(p) if any(i.kind == "reduce" for i in b.iters)]
    if not reducing:
        return None
    b = rng.choice(reducing)
    return BlockRef(b.name), [rng.choice([1, 1, 2, 4]) for _ in b.iters], rng.random() < 0.3


def _one_loop(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    f = _loop(rng, p)
    return None if f is None else (f.var,)


def _distribute(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    """A loop over several statements, where there is one."""
    found = [s for s in iterate(p.body) if isinstance(s, For)]
    several = [f for f in found if len(statements(f.body)) > 1]
    return (rng.choice(several).var,) if several else None


def _tile(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    vs = _chain(rng, p)
    return (vs[0], vs[1], rng.choice([2, 3]), rng.choice([2, 3])) if vs else None


def _related(rng: random.Random, p: Program, consumer: bool) -> tuple[Any, ...] | None:
    """A block and a loop, mostly one around a block that it shares a buffer with."""
    b = _block(rng, p)
    others = [c for c in blocks(p) if c is not b and (set(outputs(b)) & set(inputs(c)) if consumer
                                                        else set(inputs(b)) & set(outputs(c)))]
    if others and rng.random() < 0.9:
        around = loops_around(p, rng.choice(others))
        return (BlockRef(b.name), rng.choice(around).var) if around else None
    f = _loop(rng, p)
    return None if f is None else (BlockRef(b.name), f.var)


def _cache_read(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    b = _block(rng, p)
    return BlockRef(b.name), rng.randrange(max(1, len(inputs(b)))), rng.choice(["local", "global", "shared"])


def _reindex(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    """All variables that an input is indexed with, in some order."""
    b = _block(rng, p)
    loads = [n for n in walk(b.body) if isinstance(n, Load) and n.buffer in inputs(b)]
    if not loads:
        return None
    load = rng.choice(loads)
    used = {v for i in load.indices for v in walk(i) if isinstance(v, Var)}
    axes = [k for k, it in enumerate(b.iters) if it.var in used]
    return BlockRef(b.name), load.buffer.name, rng.sample(axes, len(axes))


def _cache_write(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    return BlockRef(_block(rng, p).name), 0, rng.choice(["local", "global"])


def _block_and_own_loop(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    reducing = [b for b in blocks(p) if any(i.kind == "reduce" for i in b.iters)]
    b = rng.choice(reducing) if reducing and rng.random() < 0.9 else _block(rng, p)
    around = loops_around(p, b)
    return (BlockRef(b.name), rng.choice(around).var) if around else None


def _rfactor(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    got = _block_and_own_loop(rng, p)
    return None if got is None else (*got, rng.choice([0, 0, 1, -1]))


def _one_block(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    return (BlockRef(_block(rng, p).name),)


def _padding(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    found = [b for b in blocks(p) if b.name.startswith("pad")]
    return (BlockRef(rng.choice(found).name),) if found else None


def _layout(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    b = _block(rng, p)
    params = {id(x) for x in p.params}
    choices = [x for x in [*outputs(b), *inputs(b)] if id(x) not in params or rng.random() < 0.1]
    if not choices:
        return None
    buffer = rng.choice(choices)
    rank = buffer.rank
    d, factor = rng.randrange(rank), rng.choice([2, 3, 4])
    kind = rng.choice(["swap", "split"])

    def index_map(*i: Any) -> tuple[Any, ...]:
        if kind == "swap":
            return (*i[1:], i[0])
        return (*i[:d], i[d] // factor, *i[d + 1:], i[d] % factor)

    return BlockRef(b.name), buffer.name, index_map


def _annotate(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    f = _loop(rng, p)
    return None if f is None else (f.var, "note", rng.randrange(3))


def _sample_tile(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    f = _loop(rng, p)
    return None if f is None else (f.var, (2, 4), 4)


def _sample_choice(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    return (1, 2, 3), rng.choice([1, 2, 3])


def _sample_perfect_tile(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    f = _loop(rng, p)
    return None if f is None else (f.var, rng.choice([1, 2, 3]), rng.choice([1, 4, 16]))


def _sample_compute_location(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    return BlockRef(_block(rng, p).name), -1 if rng.random() < 0.5 else rng.randrange(4)


def _prefetch(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    b = _block(rng, p)
    around = loops_around(p, b)
    if not around or not inputs(b):
        return None
    k = rng.randrange(len(around))
    return BlockRef(b.name), rng.choice(inputs(b)).name, around[k].var, around[rng.randint(0, k)].var, rng.choice([1, 2])


def _prefetch_next(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    found = _prefetch(rng, p)
    return None if found is None else found[:-1]


def _set_scope(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    return BlockRef(_block(rng, p).name), 0, "local"


def _inner_loop(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    """One of the two innermost loops around a block."""
    around = loops_around(p, _block(rng, p))
    return (rng.choice(around[-2:]).var,) if around else None


COPIES = {n: tensor_intrinsic(f"""
    program test_copy{n}(c: i32[{n}], a: i32[{n}]):
        for i in 0..{n}:
            c[i] = a[i]
""", emit={}) for n in range(2, 8)}
DOTS = {n: tensor_intrinsic(f"""
    program test_dot{n}(c: i32[1], a: i32[{n}], b: i32[{n}]):
        for i in 0..{n}:
            c[0] = c[0] + a[i] * b[i]
""", emit={}) for n in range(2, 8)}


def _any_block(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    return (BlockRef(_block(rng, p).name),)


def _axis(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    b = _block(rng, p)
    return (BlockRef(b.name), rng.randrange(len(b.iters)), rng.choice([1, 2, 3, 4])) if b.iters else None


def _tensorize(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    """An innermost loop as a copy or a dot product: the rest of the block's kinds does not match."""
    b = _block(rng, p)
    around = loops_around(p, b)
    n = as_int(around[-1].extent) if around else None
    if n not in COPIES or isinstance(b.body, For):
        return None
    value = b.body.value if isinstance(b.body, Store) else None
    if isinstance(value, Load):
        return around[-1].var, COPIES[n]
    return (around[-1].var, DOTS[n]) if any(it.kind == "reduce" for it in b.iters) else None


def _buffer_in_turn(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    """A block and a loop around it; mostly one that makes something of its own for each step of the loop."""
    found = [b for b in blocks(p) if outputs(b) and not any(q is outputs(b)[0] for q in p.params) and loops_around(p, b)]
    if not found:
        return None
    b = rng.choice(found)
    return BlockRef(b.name), rng.choice(loops_around(p, b)).var


def _software_pipeline(rng: random.Random, p: Program) -> tuple[Any, ...] | None:
    """A loop that holds several statements."""
    found = [s for s in iterate(p.body) if isinstance(s, For) and isinstance(s.body, Seq)]
    return (rng.choice(found).var, rng.choice([2, 2, 3])) if found else None


CALLS: dict[str, tuple[float, Callable[[random.Random, Program], tuple[Any, ...] | None]]] = {
    "split": (4, _split), "fuse": (2, _fuse), "reorder": (3, _reorder), "tile": (1, _tile), "unroll": (0.5, _one_loop),
    "vectorize": (0.7, _one_loop), "parallel": (0.7, _one_loop), "annotate": (0.2, _annotate),
    "sample_tile": (0.2, _sample_tile), "sample_choice": (0.2, _sample_choice),
    "compute_at": (4, lambda r, p: _related(r, p, True)), "reverse_compute_at": (4, lambda r, p: _related(r, p, False)),
    "cache_read": (2, _cache_read), "cache_write": (2, _cache_write), "set_scope": (0.3, _set_scope),
    "add_unit_loop": (0.3, _any_block), "split_axis": (0.5, _axis), "reindex": (0.5, _reindex),
    "blockize": (0.5, _inner_loop), "tensorize": (0.5, _tensorize),
    "double_buffer": (1, _buffer_in_turn), "software_pipeline": (1, _software_pipeline),
    "prefetch": (0.2, _prefetch), "prefetch_next": (0.3, _prefetch_next),
    "decompose_reduction": (2, _block_and_own_loop), "decompose_padding": (1.5, _padding), "rfactor": (2, _rfactor),
    "compute_inline": (1.5, _one_block), "reverse_compute_inline": (1.5, _one_block), "transform_layout": (1, _layout)}
CUTTING: dict[str, tuple[float, Callable[[random.Random, Program], tuple[Any, ...] | None]]] = {
    "distribute": (3, _distribute), "reschedule": (2, _reschedule), "loop_partition": (0.5, _partition),
    "pad_einsum": (1.5, _pad_einsum), "sample_perfect_tile": (0.2, _sample_perfect_tile),
    "sample_compute_location": (0.2, _sample_compute_location)}
"""Primitives after which nests are skewed, or buffers written by several blocks: of what comes then, proofs see less."""
PINNED = ("places are used in turn", " any more: ")
"""Refusals of edits to what double_buffer, software_pipeline and tensorize have made."""
LOOKS = frozenset({"block", "loops"})


# ---- running ----------------------------------------------------------------------------------------------------------
@contextmanager
def forced() -> Iterator[None]:
    token = unproved.set(True)
    try:
        yield
    finally:
        unproved.reset(token)


@contextmanager
def quiet() -> Iterator[None]:
    """Refusals look for no counterexample: there are thousands."""
    token = explaining.set(False)
    try:
        yield
    finally:
        explaining.reset(token)


def known_handles(sch: Schedule, args: tuple[Any, ...]) -> None:
    """Record how a handle is found, for those that no primitive of the trace has returned."""
    for a in [x for arg in args for x in (arg if isinstance(arg, list) else [arg])]:
        if isinstance(a, BlockRef) and a not in sch._refs:
            sch.block(a.name)
        elif isinstance(a, Var) and a not in sch._refs:
            b = next(b for b in blocks(sch.program) if any(f.var is a for f in loops_around(sch.program, b)))
            sch.loops(sch.block(b.name))


def run_trace(program: Program, seed: int, tally: Tally, expected: list[Any], *, steps: int = 8,
              judge: float = 0.15, cutting: bool = False) -> Schedule:
    """Apply `steps` random primitives (refused ones do not count), with `cutting` those of CUTTING among them; a share
    `judge` of the refusals is judged."""
    calls = {**CALLS, **CUTTING} if cutting else CALLS
    rng = random.Random(seed)
    sch = Schedule(program)
    names = list(calls)
    weights = [calls[n][0] for n in names]
    done = tries = 0
    while done < steps and tries < 40 * steps:
        tries += 1
        name = rng.choices(names, weights)[0]
        args = calls[name][1](rng, sch.program)
        if args is None:
            continue
        known_handles(sch, args)
        before = sch.program
        try:
            with quiet():
                sch.apply(name, *args)
        except ScheduleError as error:
            tally.refused[name] += 1
            if rng.random() < judge:
                judge_refusal(before, (name, args), error, seed, tally, expected)
            continue
        if len(blocks(sch.program)) > 24:
            sch = _undo(sch, before)
            continue
        done += 1
        tally.applied[name] += 1
    return sch


def _undo(sch: Schedule, before: Program) -> Schedule:
    sch.program = before
    gone = sch.trace.instructions.pop()
    for h in [h for h, r in sch._refs.items() if r in gone.results]:
        del sch._refs[h]
    sch._count -= len(gone.results)
    return sch


def check(program: Program, sch: Schedule, expected: list[Any]) -> str | None:
    """What is wrong with a scheduled program, or None."""
    for order in ("forward", "reverse"):
        try:
            got = results(sch.program, arguments(program), order)
        except TilewrightError as e:
            return f"{type(e).__name__}: {e}"
        if not all(np.array_equal(x, y) for x, y in zip(got, expected, strict=True)):
            return f"other results (parallel loops {order})"
    again = replay(sch.trace, program)
    if not alpha_equal(again.program, sch.program):
        return "the replayed trace gives another program"
    return None


def first_wrong_step(program: Program, sch: Schedule, expected: list[Any]) -> str:
    """The first instruction of a trace after which the results are wrong."""
    for n in range(1, len(sch.trace.instructions) + 1):
        part = type(sch.trace)(sch.trace.instructions[:n])
        again = replay(part, program)
        why = check(program, again, expected)
        if why is not None:
            return f"after {part.instructions[-1]}: {why}\n{again.program}"
    return "no step by itself"


def judge_refusal(before: Program, call: Call, error: ScheduleError, seed: int, tally: Tally, expected: list[Any]) -> None:
    """Force a refused edit and see whether it is wrong. That something is to stay as it is says nothing of that."""
    name, args = call
    if any(text in error.message for text in PINNED):
        tally.impossible[name] += 1
        return
    sch = Schedule(before)
    sch._depth = 1  # nothing of this is recorded
    with forced():
        try:
            PRIMITIVES.get(name)(sch, *args)
        except ScheduleError:
            tally.impossible[name] += 1
            return
    if is_wrong(sch.program, name, expected):
        tally.confirmed[name] += 1
    else:
        tally.doubtful.append((seed, name, str(error).split("\n")[0], before, call))


def is_wrong(program: Program, name: str, expected: list[Any]) -> bool:
    """Whether an edited program computes something else, in any order of loops whose order must not matter."""
    if name == "vectorize":  # lanes run at once: no order may matter
        program = transform(program, lambda n: n.replace(kind="parallel")
                            if isinstance(n, For) and n.kind == "vectorized" else n)
    try:
        for order in ("forward", "reverse"):
            got = results(program, None, order)
            if not all(np.array_equal(x, y) for x, y in zip(got, expected, strict=True)):
                return True
    except TilewrightError:
        return True
    try:
        return bool(wrongs(program))
    except Unknown:
        return False

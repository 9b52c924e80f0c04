"""Verdicts about random nests, beside integer sets: what is applied passes the same values on, what is refused does not."""
from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tests.tensor.schedule.random_traces import forced
from tilewright.core.dtype import i32
from tilewright.loop.ir import (
    TRUE,
    ZERO,
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
    as_int,
    const,
)
from tilewright.tensor.schedule.index_map import IndexMap
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError, blocks, iterate, loops_around

pytest.importorskip("islpy")
from tests.tensor.schedule.isl_oracle import dataflow, races, same_values

MARGIN = 2


def nest(name: str, extents: list[int], store: Callable[[list[Var]], tuple[Buffer, list[Expr]]],
         value: Callable[[list[Var]], Expr]) -> Stmt:
    """A block in a serial nest."""
    iters = [IterVar(Var(f"v{name}{k}"), const(n)) for k, n in enumerate(extents)]
    loops = [Var(f"{name}{k}") for k in range(len(extents))]
    v = [i.var for i in iters]
    buffer, at = store(v)
    body: Stmt = Block(name, tuple(iters), tuple(loops), TRUE, Store(buffer, tuple(at), value(v)))
    for x, n in zip(reversed(loops), reversed(extents), strict=True):
        body = For(x, ZERO, const(n), body)
    return body


def stencil(rng: random.Random) -> Program:
    """One statement that reads its own buffer around what it writes."""
    rank = rng.choice([1, 2, 2, 3])
    extents = [rng.randint(2, 4) for _ in range(rank)]
    a = Buffer("A", i32, tuple([const(n + 2 * MARGIN) for n in extents]))
    offsets = [[rng.choice([-2, -1, 0, 0, 1]) for _ in range(rank)] for _ in range(rng.choice([1, 2]))]

    def value(v: list[Var]) -> Expr:
        reads = [Load(a, tuple([x + (MARGIN + d) for x, d in zip(v, o, strict=True)])) for o in offsets]
        out: Expr = const(1, i32)
        for r in reads:
            out = out + r
        return out
    body = nest("S", extents, lambda v: (a, [x + MARGIN for x in v]), value)
    return Program("stencil", (a,), body)


def two_stages(rng: random.Random) -> Program:
    """A producer, and a consumer of a window of it, each in a nest of its own."""
    n, m = rng.randint(2, 4), rng.randint(2, 4)
    x, out = Buffer("X", i32, (const(n + 2), const(m + 2))), Buffer("C", i32, (const(n), const(m)))
    p = Buffer("P", i32, (const(n + 2), const(m + 2)))
    windows = [(rng.randint(0, 2), rng.randint(0, 2)) for _ in range(rng.choice([1, 2]))]
    make = nest("P", [n + 2, m + 2], lambda v: (p, list(v)), lambda v: Load(x, tuple(v)) * 2)

    def value(v: list[Var]) -> Expr:
        out: Expr = const(0, i32)
        for a, b in windows:
            out = out + Load(p, (v[0] + a, v[1] + b))
        return out
    use = nest("C", [n, m], lambda v: (out, list(v)), value)
    return Program("stages", (x, out), Allocate(p, Seq((make, use))))


def orders(rng: random.Random, loops: list[For]) -> Callable[..., list[Any]]:
    n = len(loops)

    def order(*v: Any) -> list[Any]:
        out = [v[k] for k in rng.sample(range(n), n)]
        k = rng.randrange(n)
        if rng.random() < 0.4:
            return [*out[:k], -out[k], *out[k + 1:]]
        if n > 1 and rng.random() < 0.7:
            m = rng.choice([m for m in range(n) if m != k])
            return [*out[:k], out[k] + rng.choice([-1, 1, 2]) * out[m], *out[k + 1:]]
        c = rng.choice([2, 3])
        return [*out[:k], out[k] // c, *out[k + 1:], out[k] % c]
    return order


def random_call(rng: random.Random, sch: Schedule) -> tuple[str, tuple[Any, ...]] | None:
    b = rng.choice(blocks(sch.program))
    around = loops_around(sch.program, b)
    chain = around if all(o.body is i for o, i in pairwise(around)) and around[-1].body is b else []
    kind = rng.choice(["reorder", "reorder", "reschedule", "reschedule", "loop_partition", "fuse", "compute_at",
                       "compute_at", "distribute", "parallel"])
    if kind == "reorder" and len(chain) > 1:
        return kind, tuple(rng.sample([f.var for f in chain], len(chain)))
    if kind == "reschedule" and chain:
        return kind, ([f.var for f in chain], IndexMap.of(orders(rng, chain), len(chain)))
    if kind == "fuse" and len(chain) > 1:
        return kind, tuple([f.var for f in chain[:2]])
    if kind in ("loop_partition", "parallel"):
        f = rng.choice(around)
        n = as_int(f.extent) or 2
        return (kind, (f.var,)) if kind == "parallel" else (kind, (f.var, [rng.randint(1, max(1, n - 1))]))
    if kind == "compute_at" and len(blocks(sch.program)) == 2:
        return kind, (BlockRef("P"), rng.choice(loops_around(sch.program, blocks(sch.program)[-1])).var)
    several = [s for s in iterate(sch.program.body) if isinstance(s, For) and isinstance(s.body, Seq)]
    return ("distribute", (rng.choice(several).var,)) if kind == "distribute" and several else None


def test_verdicts_beside_integer_sets(capsys: pytest.CaptureFixture[str]) -> None:
    applied, refused_, doubtful = Counter[str](), Counter[str](), Counter[str]()
    why: list[str] = []
    for seed in range(160):
        rng = random.Random(seed)
        program = rng.choice([stencil, stencil, two_stages])(rng)
        names = {b.name for b in blocks(program)}
        outputs = {p.name for p in program.params if isinstance(p, Buffer)}
        want = dataflow(program, names)
        sch = Schedule(program)
        for _ in range(4):
            for b in blocks(sch.program):
                sch.loops(sch.block(b.name))
            call = random_call(rng, sch)
            if call is None:
                continue
            name, args = call
            before = sch.program
            try:
                sch.apply(name, *args)
            except ScheduleError as error:
                trial = Schedule(before)
                for b in blocks(before):
                    trial.loops(trial.block(b.name))
                with forced():
                    try:
                        trial.apply(name, *args)
                    except ScheduleError:
                        continue  # no edit to judge
                if name == "reorder" and "depends on loop" in error.message:
                    continue  # no program at all
                bad = races(before, args[0]) if name == "parallel" else not same_values(
                    want, dataflow(trial.program, names), outputs)
                refused_[name] += 1
                if not bad:
                    doubtful[name] += 1
                    why.append(f"seed {seed}: {error.message}\n{before}")
                continue
            applied[name] += 1
            got = dataflow(sch.program, names)
            assert same_values(want, got, outputs), f"seed {seed}: {name}{args}\n{before}\n{sch.program}"
            if name == "parallel":
                assert not races(before, args[0]), f"seed {seed}: parallel({args[0].name})\n{before}"
    with capsys.disabled():
        print(f"\napplied {dict(applied)}\nrefused {dict(refused_)}\nof these right after all {dict(doubtful)}")
    for name in ("reorder", "reschedule", "loop_partition", "fuse", "compute_at", "distribute", "parallel"):
        assert applied[name], f"{name} was never applied"
    for name in ("reorder", "reschedule", "parallel"):
        assert refused_[name] >= 3, f"{name} was hardly ever refused"
        assert not doubtful[name], "\n".join(why)
    assert doubtful.total() <= 0.1 * refused_.total(), "\n".join(why)

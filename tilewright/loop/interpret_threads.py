"""How the interpreter runs the threads of a block that wait for each other at barriers.

In: nested loops over threadIdx with barriers inside. Out: an action that runs one thread after another up to its next
barrier, in the order that the run asks for (forward, reverse or random, another one in each phase), and goes on when all
have arrived. What a thread leaves in its own variables and local buffers is its own; a missing barrier shows as a value
that is not there yet, or not any more. Threads that arrive at different barriers are an error.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from tilewright.core.errors import InternalError
from tilewright.core.node import walk
from tilewright.loop import ir

Env = list[Any]
Steps = Callable[[Env], Iterator[ir.Stmt]]
BARRIER = "barrier"


def waits(s: ir.Stmt) -> bool:
    """Whether a statement has a barrier inside."""
    return any(isinstance(n, ir.Call) and n.name == BARRIER for n in walk(s))


def threads(c: Any, loop: ir.For) -> Callable[[Env], None]:
    """The action of nested thread loops; `c` compiles the statements in them (see loop/interpret.py)."""
    loops = [loop]
    while isinstance(loops[-1].body, ir.For) and loops[-1].body.kind.startswith("threadIdx"):
        loops.append(loops[-1].body)
    starts, extents = [c.expr(s.start) for s in loops], [c.expr(s.extent) for s in loops]
    slots = [c.slot(s.var) for s in loops]
    body = _steps(c, loops[-1].body)

    def run(env: Env) -> None:
        spans = [range(a(env), a(env) + n(env)) for a, n in zip(starts, extents, strict=True)]
        running: list[Iterator[ir.Stmt]] = []
        for index in itertools.product(*spans):
            own = list(env)
            for slot, i in zip(slots, index, strict=True):
                own[slot] = i
            running.append(body(own))
        while running:
            at: list[Any] = [None] * len(running)
            for k in c.owner.ordered(len(running)):
                at[k] = next(running[k], None)
            other = next((x for x in at if x is not at[0]), at[0])
            if other is not at[0]:
                raise InternalError(f"threads of a block part ways: one is at {at[0]!r}, another at {other!r}\n{c.p}")
            if at[0] is None:
                return

    return run


def _steps(c: Any, s: ir.Stmt) -> Steps:
    """A statement as a generator that stops at each barrier."""
    if not waits(s):
        return _whole(c.stmt(s))
    match s:
        case ir.Evaluate(ir.Call(name)) if name == BARRIER:
            return lambda env: iter((s,))
        case ir.Seq(stmts):
            return _sequence([_steps(c, t) for t in stmts])
        case ir.For(var, start, extent, body):
            return _loop(c.slot(var), c.expr(start), c.expr(extent), _steps(c, body))
        case ir.If(cond, then, otherwise):
            return _branch(c.expr(cond), _steps(c, then), None if otherwise is None else _steps(c, otherwise))
        case ir.Let(var, value, body):
            return _definition(c.slot(var), c.expr(value), _steps(c, body))
        case ir.Allocate(buffer, body) if buffer.scope == "local":
            return _definition(c.slot(buffer), c.allocation(buffer, None), _steps(c, body))
    raise InternalError(f"a barrier inside a {type(s).__name__} of threads\n{c.p}")


def _whole(action: Callable[[Env], None]) -> Steps:
    def steps(env: Env) -> Iterator[ir.Stmt]:
        action(env)
        return iter(())
    return steps


def _sequence(parts: list[Steps]) -> Steps:
    def steps(env: Env) -> Iterator[ir.Stmt]:
        for part in parts:
            yield from part(env)
    return steps


def _loop(slot: int, start: Any, extent: Any, body: Steps) -> Steps:
    def steps(env: Env) -> Iterator[ir.Stmt]:
        first = start(env)
        for i in range(first, first + extent(env)):
            env[slot] = i
            yield from body(env)
    return steps


def _branch(cond: Any, then: Steps, otherwise: Steps | None) -> Steps:
    def steps(env: Env) -> Iterator[ir.Stmt]:
        if cond(env):
            yield from then(env)
        elif otherwise is not None:
            yield from otherwise(env)
    return steps


def _definition(slot: int, value: Any, body: Steps) -> Steps:
    def steps(env: Env) -> Iterator[ir.Stmt]:
        env[slot] = value(env)
        yield from body(env)
    return steps

"""How the interpreter runs the threads of a block that wait for each other at barriers.

In: nested loops over threadIdx with barriers inside. Out: an action that runs one thread after another up to its next
barrier, in the order that the run asks for (forward, reverse or random, another one in each phase), and goes on when all
have arrived. What a thread leaves in its own variables and local buffers is its own; a missing barrier shows as a value
that is not there yet, or not any more. Threads that arrive at different barriers are an error.

An instruction of a warp is run once, when all threads of the warp have arrived there; other warps do not wait. A buffer of
scope "warp", allocated between the loops over threads, is a memory of its own for each warp.

What an asynchronous copy writes arrives at once (forward), not before the thread waits for it (reverse), or either
(random); in a kernel in which nothing waits for copies, at once.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tilewright.core.errors import InternalError
from tilewright.core.node import walk
from tilewright.loop import ir
from tilewright.loop.tensor_intrinsics import tensor_intrinsic_named

Env = list[Any]
Steps = Callable[[Env], Iterator[Any]]
BARRIER, WAIT, COMMIT = "barrier", "wait_copies", "commit_copies"
COPIES = ir.Var("copies")
"""Stands for a thread's copies that may not have arrived: groups of actions and the values that they were given, the last
group still open."""


def waits(s: ir.Stmt) -> bool:
    """Whether threads wait in a statement: at a barrier, for an instruction of their warp for copies (or begin some)."""
    return any(isinstance(n, ir.Call) and n.name in (BARRIER, WAIT, COMMIT)
               or isinstance(n, ir.TensorCall) and (_together(n) or tensor_intrinsic_named(n.name).asynchronous)
               for n in walk(s))


def _together(s: ir.TensorCall) -> bool:
    return tensor_intrinsic_named(s.name).threads > 1


def _waits_for_copies(p: ir.Program) -> bool:
    return any(isinstance(n, ir.Call) and n.name == WAIT for n in walk(p.body))


def threads(c: Any, loop: ir.For) -> Callable[[Env], None]:
    """The action of nested thread loops; `c` compiles the statements in them (see loop/interpret.py)."""
    loops, owned = [loop], []
    inside: ir.Stmt = loop.body
    while True:
        if isinstance(inside, ir.For) and inside.kind.startswith("threadIdx"):
            loops.append(inside)
        elif isinstance(inside, ir.Allocate) and inside.buffer.scope == "warp":
            owned.append((len(loops), c.slot(inside.buffer), c.allocation(inside.buffer, None)))
        else:
            break
        inside = inside.body
    starts, extents = [c.expr(s.start) for s in loops], [c.expr(s.extent) for s in loops]
    slots = [c.slot(s.var) for s in loops]
    body, copies = _steps(c, inside), c.slot(COPIES)
    across = next((k for k, s in enumerate(loops) if s.kind == "threadIdx.x"), None)

    def run(env: Env) -> None:
        spans = [range(a(env), a(env) + n(env)) for a, n in zip(starts, extents, strict=True)]
        warps: dict[Any, list[tuple[Iterator[Any], Env]]] = {}
        memories: dict[Any, Any] = {}
        for index in itertools.product(*spans):
            own = list(env)
            own[copies] = [[]]
            for slot, i in zip(slots, index, strict=True):
                own[slot] = i
            for depth, slot, make in owned:
                where = slot, index[:depth]
                own[slot] = memories[where] = memories[where] if where in memories else make(own)
            warp = index if across is None else (*index[:across], index[across] // WARP, *index[across + 1:])
            warps.setdefault(warp, []).append((body(own), own))
        running = list(warps.values())
        while running:
            at: list[Any] = [None] * len(running)
            for k in c.owner.ordered(len(running)):
                at[k] = _advance(c, running[k])
            if _common(c, at) is None:
                return

    return run


WARP = 32
"""Threads of a warp, neighbours along threadIdx.x."""


@dataclass(frozen=True)
class _Instruction:
    """What a warp does together."""
    stmt: ir.Stmt
    action: Callable[[Env], None]


def _advance(c: Any, warp: list[tuple[Iterator[Any], Env]]) -> Any:
    """Run the threads of a warp up to their next barrier, which is returned; None when they are done."""
    while True:
        at: list[Any] = [None] * len(warp)
        for k in c.owner.ordered(len(warp)):
            at[k] = next(warp[k][0], None)
        here = _common(c, at)
        if not isinstance(here, _Instruction):
            return here
        here.action(warp[0][1])


def _common(c: Any, at: list[Any]) -> Any:
    """Where all threads are."""
    other = next((x for x in at if x is not at[0]), at[0])
    if other is not at[0]:
        raise InternalError(f"threads of a block part ways: one is at {at[0]!r}, another at {other!r}\n{c.p}")
    return at[0]


def _steps(c: Any, s: ir.Stmt) -> Steps:
    """A statement as a generator that stops at each barrier."""
    if not waits(s):
        return _whole(c.stmt(s))
    match s:
        case ir.Evaluate(ir.Call(name)) if name == BARRIER:
            return lambda env: iter((s,))
        case ir.Evaluate(ir.Call(name, (flying,))) if name == WAIT:
            return _whole(_arrival(c.slot(COPIES), ir.as_int(flying) or 0))
        case ir.Evaluate(ir.Call(name)) if name == COMMIT:
            slot = c.slot(COPIES)
            return _whole(lambda env: env[slot].append([]))
        case ir.TensorCall() if not _together(s):
            return _whole(_copy(c, c.stmt(s.body), c.slot(COPIES)) if _waits_for_copies(c.p) else c.stmt(s.body))
        case ir.TensorCall():
            together = _Instruction(s, c.stmt(s.body))
            return lambda env: iter((together,))
        case ir.Seq(stmts):
            return _sequence([_steps(c, t) for t in stmts])
        case ir.For(kind=kind) if kind.startswith("threadIdx"):
            return _whole(threads(c, s))
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
    def steps(env: Env) -> Iterator[Any]:
        action(env)
        return iter(())
    return steps


def _copy(c: Any, action: Callable[[Env], None], copies: int) -> Callable[[Env], None]:
    """A copy that may be made later, with the values that variables have now."""
    def copy(env: Env) -> None:
        if c.owner.ordered(2)[0]:
            env[copies][-1].append((action, list(env)))
        else:
            action(env)
    return copy


def _arrival(copies: int, flying: int) -> Callable[[Env], None]:
    """A thread's copies are made, but those of its `flying` newest groups; if there are none of these, the open one's, too
    (PTX ISA, cp.async.wait_group and wait_all)."""
    def arrive(env: Env) -> None:
        groups = env[copies]
        done = max(0, len(groups) - 1 - flying) if flying else len(groups)
        for action, then in [copy for group in groups[:done] for copy in group]:
            action(then)
        env[copies] = groups[done:] or [[]]
    return arrive


def _sequence(parts: list[Steps]) -> Steps:
    def steps(env: Env) -> Iterator[Any]:
        for part in parts:
            yield from part(env)
    return steps


def _loop(slot: int, start: Any, extent: Any, body: Steps) -> Steps:
    def steps(env: Env) -> Iterator[Any]:
        first = start(env)
        for i in range(first, first + extent(env)):
            env[slot] = i
            yield from body(env)
    return steps


def _branch(cond: Any, then: Steps, otherwise: Steps | None) -> Steps:
    def steps(env: Env) -> Iterator[Any]:
        if cond(env):
            yield from then(env)
        elif otherwise is not None:
            yield from otherwise(env)
    return steps


def _definition(slot: int, value: Any, body: Steps) -> Steps:
    def steps(env: Env) -> Iterator[Any]:
        env[slot] = value(env)
        yield from body(env)
    return steps

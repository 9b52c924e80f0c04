"""The loop IR's interpreter: runs a program of any stage on NumPy arrays. Slow and scalar: it is the definition of meaning.

Values: an integer is a Python int wrapped to its type, a bool a Python bool, a float a NumPy (or ml_dtypes) scalar of its
type, so that every operation rounds; a vector is an array (of int64, or uint64 for u64, if its elements are integers).
A buffer is (memory, offset, shape, strides); memory is a flat array, one element per entry whatever the packing.
Each expression and statement is compiled once to a Python closure over an environment (a list, one slot per variable).

To bring mistakes to light: allocated memory starts as NaN or 0xCD bytes, every index is checked per dimension, a block's
iteration variables must lie in their domains, arena buffers share one memory at their planned offsets, and parallel
iterations and the threads of a block can run in another order.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tilewright.core.dtype import DType
from tilewright.core.errors import InternalError, TilewrightError, UserError
from tilewright.core.node import Node, walk
from tilewright.loop import ir
from tilewright.loop.externs import EXTERN_FAILED, extern_named
from tilewright.loop.interpret_expressions import EXPRESSIONS, Env, Value
from tilewright.loop.interpret_threads import threads, waits
from tilewright.loop.printer import print_around
from tilewright.loop.values import poison, round_to, vector_kind

Action = Callable[[Env], None]
Order = Literal["forward", "reverse", "random"]


class AssertFailed(TilewrightError):
    """An `assert` of the program did not hold: compiled code returns `code` and `message` to the caller."""

    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"assertion failed with code {code}: {message}")


def run(what: ir.Program | ir.Module, args: Mapping[str, Any] | Sequence[Any], module: ir.Module | None = None, *,
        order: Order = "forward", seed: int = 0, entry: str | None = None) -> None:
    """Run a program, or the entry of a module ("main" or else the first), on arrays that it changes in place.

    `args`: by position, or by name; integers for scalars, C-contiguous arrays of the buffer's dtype and shape for
    buffers (any shape of enough elements if the buffer has strides). By name, a scalar that is a dimension of some
    buffer may be left out. `module` holds the programs that `launch` names. `order` is that of parallel iterations.
    Raises InternalError for an access out of bounds, a division by zero and arguments that do not fit, showing the place;
    AssertFailed for the program's own assertions.
    """
    Interpreter(what, module, entry=entry).run(args, order=order, seed=seed)


class Interpreter:
    """A program compiled to closures, to be run many times."""

    def __init__(self, what: ir.Program | ir.Module, module: ir.Module | None = None, *, entry: str | None = None,
                 arena_bytes: int = 1 << 28) -> None:
        programs = what.programs if isinstance(what, ir.Module) else (what, *(module.programs if module else ()))
        self.programs: dict[str, ir.Program] = {}
        for p in programs:
            if self.programs.setdefault(p.name, p) is not p:
                raise InternalError(f"two programs are called {p.name}")
        if entry is None:
            entry = "main" if isinstance(what, ir.Module) and "main" in self.programs else programs[0].name
        self.entry = self.programs[entry]
        self.arena_bytes = arena_bytes
        self.compiled: dict[str, _Compiled] = {}
        self.order: Order = "forward"
        self.random = random.Random(0)
        self._arena: Any = None

    def run(self, args: Mapping[str, Any] | Sequence[Any], *, order: Order = "forward", seed: int = 0) -> None:
        """See `run` of this file."""
        self.order, self.random = order, random.Random(seed)
        values = _arguments(self.entry, args)
        with np.errstate(all="ignore"):
            self.program(self.entry.name).call(values)

    def program(self, name: str) -> _Compiled:
        got = self.compiled.get(name)
        if got is None:
            if name not in self.programs:
                raise InternalError(f"launch of {name}, which is not in the module ({', '.join(self.programs)})")
            got = self.compiled[name] = _Compiled(self, self.programs[name])
        return got

    def ordered(self, n: int) -> Sequence[int]:
        """0 … n-1 in the order in which this run executes independent iterations."""
        if self.order == "forward":
            return range(n)
        if self.order == "reverse":
            return range(n - 1, -1, -1)
        shuffled = list(range(n))
        self.random.shuffle(shuffled)
        return shuffled

    def arena(self, offset: int, t: DType, n: int) -> Any:
        """`n` poisoned elements at a byte offset of the arena."""
        if self._arena is None:
            self._arena = np.empty(self.arena_bytes, np.uint8)
        fresh = poison(t, n)
        end = offset + fresh.nbytes
        if offset < 0 or end > self.arena_bytes:
            raise InternalError(f"the arena has {self.arena_bytes} bytes; a buffer was planned at {offset} … {end}")
        memory = self._arena[offset:end].view(fresh.dtype)
        memory[:] = fresh
        return memory


# ---- arguments -------------------------------------------------------------------------------------------------------
def _arguments(p: ir.Program, args: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
    """The values of the parameters; buffers as (flat memory, offset)."""
    if isinstance(args, Mapping):
        args = _by_name(p, args)
    if len(args) != len(p.params):
        raise InternalError(f"{p.name} has {len(p.params)} parameters and was given {len(args)} arguments")
    known = {q: _scalar(q.dtype, v) for q, v in zip(p.params, args, strict=True) if isinstance(q, ir.Var) and q.dtype.is_int}
    out: list[Any] = []
    for q, v in zip(p.params, args, strict=True):
        if isinstance(q, ir.Buffer):
            _check_array(p, q, v, known)
            out.append((v.reshape(-1), 0))
        elif q.dtype.kind == "handle":
            out.append(v)
        else:
            out.append(_scalar(q.dtype, v))
    return out


def _scalar(t: DType, v: Any) -> Any:
    """A number given by the caller as a value of type `t`."""
    if t.is_int:
        lo, hi = t.range()
        if not lo <= int(v) <= hi:
            raise InternalError(f"{v} is out of the range of {t}")
        return int(v)
    return bool(v) if t.is_bool else round_to(t, v)


def _by_name(p: ir.Program, args: Mapping[str, Any]) -> list[Any]:
    found: dict[Node, Any] = {q: args[q.name] for q in p.params if q.name in args}
    unknown = set(args) - {q.name for q in p.params}
    if unknown:
        raise InternalError(f"{p.name} has no parameters {', '.join(sorted(unknown))}")
    for q in p.params:
        if isinstance(q, ir.Buffer) and q in found and np.ndim(found[q]) == q.rank:
            for dim, n in zip(q.shape, np.shape(found[q]), strict=True):
                if isinstance(dim, ir.Var):
                    found.setdefault(dim, n)
    missing = [q.name for q in p.params if q not in found]
    if missing:
        raise InternalError(f"{p.name} was not given {', '.join(missing)}")
    return [found[q] for q in p.params]


def _check_array(p: ir.Program, b: ir.Buffer, v: Any, known: dict[Any, int]) -> None:
    if not isinstance(v, np.ndarray) or v.dtype != b.dtype.numpy() or not v.flags.c_contiguous:
        got = f"{v.dtype}{list(v.shape)}" if isinstance(v, np.ndarray) else type(v).__name__
        raise InternalError(f"{p.name}: argument {b.name} must be a C-contiguous array of {b.dtype}, not {got}")
    if b.strides is not None:
        return
    want = tuple(e.value if isinstance(e, ir.Const) else known.get(e) for e in b.shape)
    if len(want) != v.ndim or any(w is not None and w != n for w, n in zip(want, v.shape, strict=True)):
        raise InternalError(f"{p.name}: argument {b.name} has shape {v.shape}, but is declared as {b!r}")


# ---- a compiled program ----------------------------------------------------------------------------------------------
class _Compiled:
    """One program: slots of its variables, and its body as closures."""

    def __init__(self, owner: Interpreter, p: ir.Program) -> None:
        self.owner, self.p = owner, p
        self.slots: dict[Node, int] = {}
        self.tables: list[tuple[int, Any]] = []
        for q in sorted(p.params, key=lambda q: isinstance(q, ir.Buffer)):  # shapes need the scalars
            self.slot(q)
        self.views = [self.view(q) if isinstance(q, ir.Buffer) else None for q in p.params]
        self.body = self.stmt(p.body)

    def call(self, values: Sequence[Any]) -> None:
        """Run with the given parameters; buffers are (memory, offset)."""
        env: Env = [None] * len(self.slots)
        if len(values) != len(self.views):
            raise InternalError(f"{self.p.name} takes {len(self.views)} arguments, {len(values)} given")
        for q, view, v in zip(self.p.params, self.views, values, strict=True):
            if view is None:
                env[self.slots[q]] = v
        for q, view, v in zip(self.p.params, self.views, values, strict=True):
            if view is not None:
                env[self.slots[q]] = view(env, *_as_type(q.dtype, *v))
        for slot, made in self.tables:
            env[slot] = made(env)
        self.body(env)

    def slot(self, n: Node) -> int:
        return self.slots.setdefault(n, len(self.slots))

    def slot_of(self, n: Any) -> int:
        """The slot of something used. A buffer with data that is defined nowhere is a constant table."""
        if n not in self.slots:
            if not isinstance(n, ir.Buffer) or n.data is None:
                raise InternalError(f"{n.name} is used in {self.p.name} but not defined\n{self.p}")
            self.tables.append((self.slot(n), self.allocation(n, None)))
        return self.slots[n]

    def fail(self, message: str, n: Node, env: Env) -> InternalError:
        """The error for a place of the program, with the values of the variables in it."""
        found = {v.name: env[self.slots[v]] for v in walk(n) if isinstance(v, ir.Var) and v in self.slots}
        values = ", ".join(f"{k} = {v}" for k, v in found.items())
        where = repr(n).split("\n", 1)[0]
        return InternalError(f"{message} in {where}" + (f", where {values}" if values else "")
                             + "\n" + print_around(self.p, n))

    # -- buffers
    def view(self, b: ir.Buffer) -> Callable[..., tuple[Any, int, tuple[int, ...], tuple[int, ...]]]:
        """How to make the run-time form of a buffer from memory and an offset."""
        shape = [self.expr(e) for e in b.shape]
        strides = None if b.strides is None else [self.expr(e) for e in b.strides]

        def make(env: Env, memory: Any, offset: int) -> tuple[Any, int, tuple[int, ...], tuple[int, ...]]:
            dims = tuple([f(env) for f in shape])
            if strides is not None:
                return memory, offset, dims, tuple([f(env) for f in strides])
            steps, step = [], 1
            for n in reversed(dims):
                steps.append(step)
                step *= n
            return memory, offset, dims, tuple(reversed(steps))
        return make

    def allocation(self, b: ir.Buffer, offset: Value | None) -> Value:
        """How to make an allocated buffer: poisoned, or filled with its table of data."""
        view = self.view(b)
        t = b.dtype

        def make(env: Env) -> Any:
            _, _, shape, strides = view(env, None, 0)
            n = 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True)) if all(shape) else 0
            if b.data is not None:
                memory = np.array(b.data, np.float64 if t.is_float else vector_kind(t)).astype(t.numpy())
            elif offset is not None:
                memory = self.owner.arena(offset(env), t, n)
            else:
                memory = poison(t, n)
            return memory, 0, shape, strides
        return make

    def element(self, n: Any) -> Callable[[Env], tuple[Any, Any]]:
        """The memory and the position in it (an array of positions for vector indices) that an access means."""
        slot = self.slot_of(n.buffer)
        if len(n.indices) != n.buffer.rank:
            raise InternalError(f"{n!r}: {n.buffer!r} has {n.buffer.rank} dimensions")
        indices = [self.expr(i) for i in n.indices]
        if any(i.dtype.lanes > 1 for i in n.indices):
            return self._elements(n, slot, indices)

        def at(env: Env) -> tuple[Any, Any]:
            memory, position, shape, strides = env[slot]
            for f, extent, stride in zip(indices, shape, strides, strict=True):
                i = f(env)
                if not 0 <= i < extent:
                    raise self.fail(f"index {i} is out of bounds [0, {extent})", n, env)
                position += i * stride
            if not 0 <= position < len(memory):
                raise self.fail(f"element {position} is outside the memory of {len(memory)} elements", n, env)
            return memory, position
        return at

    def _elements(self, n: Any, slot: int, indices: list[Value]) -> Callable[[Env], tuple[Any, Any]]:
        def at(env: Env) -> tuple[Any, Any]:
            memory, position, shape, strides = env[slot]
            for f, extent, stride in zip(indices, shape, strides, strict=True):
                i = np.asarray(f(env))
                if i.min() < 0 or i.max() >= extent:
                    raise self.fail(f"index {i} is out of bounds [0, {extent})", n, env)
                position = position + i.astype(np.int64) * stride
            if position.min() < 0 or position.max() >= len(memory):
                raise self.fail(f"elements {position} are outside the memory of {len(memory)} elements", n, env)
            return memory, position
        return at

    # -- expressions and statements
    def expr(self, e: ir.Expr) -> Value:
        return EXPRESSIONS[type(e)](self, e)

    def stmt(self, s: ir.Stmt) -> Action:
        return _STMTS[type(s)](self, s)


def _as_type(t: DType, memory: Any, offset: int) -> tuple[Any, int]:
    """Memory as elements of type `t`: an address may point into bytes, as that of a weight does."""
    want = t.numpy()
    if memory.dtype == want or t.kind == "handle":
        return memory, offset
    raw = memory.view(np.uint8)[offset * memory.itemsize:]
    return raw[:len(raw) // want.itemsize * want.itemsize].view(want), 0


# ---- statements ------------------------------------------------------------------------------------------------------
def _store(c: _Compiled, s: ir.Store) -> Action:
    at, value = c.element(s), c.expr(s.value)

    def store(env: Env) -> None:
        v = value(env)
        memory, k = at(env)
        memory[k] = v
    return store


def _evaluate(c: _Compiled, s: ir.Evaluate) -> Action:
    return c.expr(s.value)


def _seq(c: _Compiled, s: ir.Seq) -> Action:
    actions = [c.stmt(t) for t in s.stmts]

    def seq(env: Env) -> None:
        for action in actions:
            action(env)
    return seq


def _for(c: _Compiled, s: ir.For) -> Action:
    if s.kind.startswith("threadIdx") and waits(s.body):
        return threads(c, s)
    start, extent = c.expr(s.start), c.expr(s.extent)
    slot = c.slot(s.var)
    body = c.stmt(s.body)
    if s.kind == "parallel" or s.kind.startswith(("blockIdx", "threadIdx")):
        def parallel(env: Env) -> None:
            first = start(env)
            for k in c.owner.ordered(max(0, extent(env))):
                env[slot] = first + k
                body(env)
        return parallel

    def loop(env: Env) -> None:
        first = start(env)
        for i in range(first, first + extent(env)):
            env[slot] = i
            body(env)
    return loop


def _if(c: _Compiled, s: ir.If) -> Action:
    cond, then = c.expr(s.cond), c.stmt(s.then)
    otherwise = None if s.otherwise is None else c.stmt(s.otherwise)

    def branch(env: Env) -> None:
        if cond(env):
            then(env)
        elif otherwise is not None:
            otherwise(env)
    return branch


def _while(c: _Compiled, s: ir.While) -> Action:
    cond, body = c.expr(s.cond), c.stmt(s.body)

    def loop(env: Env) -> None:
        while cond(env):
            body(env)
    return loop


def _let(c: _Compiled, s: ir.Let) -> Action:
    value = c.expr(s.value)
    slot = c.slot(s.var)
    body = c.stmt(s.body)

    def let(env: Env) -> None:
        env[slot] = value(env)
        body(env)
    return let


def _allocate(c: _Compiled, s: ir.Allocate) -> Action:
    make = c.allocation(s.buffer, None if s.offset is None else c.expr(s.offset))
    slot = c.slot(s.buffer)
    body = c.stmt(s.body)

    def allocate(env: Env) -> None:
        env[slot] = make(env)
        body(env)
    return allocate


def _block(c: _Compiled, s: ir.Block) -> Action:
    bindings = [c.expr(b) for b in s.bindings]
    extents = [c.expr(it.extent) for it in s.iters]
    slots = [c.slot(it.var) for it in s.iters]
    reduce = [c.slot(it.var) for it in s.iters if it.kind == "reduce"]
    predicate, body = c.expr(s.predicate), c.stmt(s.body)
    init = None if s.init is None else c.stmt(s.init)

    def block(env: Env) -> None:
        values = [f(env) for f in bindings]
        for slot, v in zip(slots, values, strict=True):
            env[slot] = v
        if not predicate(env):
            return
        for it, f, v in zip(s.iters, extents, values, strict=True):
            if not 0 <= v < f(env):
                raise c.fail(f"block {s.name} runs with {it.var.name} = {v} outside its domain [0, {f(env)})", s, env)
        if init is not None and not any(env[k] for k in reduce):
            init(env)
        body(env)
    return block


def _launch(c: _Compiled, s: ir.Launch) -> Action:
    args = [c.expr(a) for a in s.args]
    tasks = None if s.tasks is None else c.expr(s.tasks)

    def launch(env: Env) -> None:
        callee = c.owner.program(s.callee)
        values = [a(env) for a in args]
        if tasks is None:
            callee.call(values)
            return
        takes_range = len(callee.p.params) == len(values) + 2
        for k in c.owner.ordered(tasks(env)):
            callee.call([k, *([k + 1] if takes_range else []), *values])
    return launch


def _assert(c: _Compiled, s: ir.Assert) -> Action:
    cond, values = c.expr(s.cond), [c.expr(v) for v in s.values]

    def check(env: Env) -> None:
        if not cond(env):
            message = s.message
            for v in values:
                message = message.replace("{}", str(int(v(env))), 1)
            raise AssertFailed(s.code, message)
    return check


def _tensor_call(c: _Compiled, s: ir.TensorCall) -> Action:
    return c.stmt(s.body)


def _extern_call(c: _Compiled, s: ir.ExternCall) -> Action:
    function = extern_named(s.symbol)
    args = [c.expr(ir.Address(a.buffer, a.indices) if isinstance(a, ir.Load) else a) for a in s.args]

    def call(env: Env) -> None:
        if function.reference is None:
            raise UserError("extern-reference", f"the interpreter cannot run the external function {s.symbol}",
                            hint="declare it with a Python function in its place: extern_function(…, reference=…)")
        values = [a(env) for a in args]
        status = function.reference(*[v[0][v[1]:] if isinstance(v, tuple) else v for v in values])
        if s.status and status:
            raise AssertFailed(EXTERN_FAILED, f"the external function {s.symbol} returned {int(status)}")
    return call


_STMTS: dict[type, Callable[[_Compiled, Any], Action]] = {
    ir.Store: _store, ir.Evaluate: _evaluate, ir.Seq: _seq, ir.For: _for, ir.If: _if, ir.While: _while, ir.Let: _let,
    ir.Allocate: _allocate, ir.Block: _block, ir.Launch: _launch, ir.Assert: _assert,
    ir.TensorCall: _tensor_call, ir.ExternCall: _extern_call}

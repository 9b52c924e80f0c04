"""online_softmax: the softmax of rows and the product with it, some columns at a time, with a running maximum and sum.

    M[i] = max_j S[i, j]                     for io: M, L, A = -inf, 0, 0 of its rows
    E[i, j] = exp(S[i, j] - M[i])              for t:
    L[i] = Σ_j E[i, j]                    →      N[i] = max(M[i], max of S[i, j] for j of tile t)
    P[i, j] = E[i, j] / L[i]                     c[i] = exp(M[i] - N[i]);  M[i] = N[i]
    O[i, d] = Σ_j P[i, j] V[j, d]                E[i, j] = exp(S[i, j] - N[i])
                                                 L[i] = L[i]*c[i] + Σ E;  A[i, d] = A[i, d]*c[i] + Σ E V
                                             O[i, d] = A[i, d] / L[i]

What was added up under an older maximum is scaled when the maximum grows: exp(S - N) = exp(S - M) * exp(M - N). Sums are
rounded in another order. M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018), section 3; with
the product, T. Dao et al., "FlashAttention" (2022), algorithm 1.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.core.node import walk
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    Add,
    Block,
    Buffer,
    Call,
    Const,
    Div,
    Expr,
    For,
    Guard,
    IterVar,
    Load,
    Lt,
    Max,
    Mul,
    Program,
    Select,
    Stmt,
    Store,
    Sub,
    Var,
    as_int,
    const,
    maximum,
    seq,
)
from tilewright.loop.substitute import fresh_copy, substitute
from tilewright.tensor.combiner import reduction_of
from tilewright.tensor.reducers import lowest
from tilewright.tensor.regions import consumers, outputs, producers, writers
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    allocate,
    blocks,
    deallocate,
    edit,
    find_block,
    is_parameter,
    loops_around,
)
from tilewright.tensor.schedule.trace import primitive

NAME = "online_softmax"


@dataclass(frozen=True)
class _Found:
    """The blocks of a softmax and the product with it; `scores` is S, `weights` makes P, `values` reads V."""
    top: Block
    exp: Block
    total: Block
    weights: Block
    product: Block
    scores: Buffer
    values: Load


@primitive
def online_softmax(sch: Schedule, block: BlockRef, rows: int, columns: int) -> tuple[Var, Var]:
    """Compute `block`, a product Σ_j P[…, i, j] V[…] of weights P = E·c or E/c with E = exp(S - max S) and c made of
    the row's Σ_j E alone, `rows` rows and `columns` columns of S at a time. Returns the loops over tiles of rows and of
    columns.

    The blocks of the new nest are called after those they come from: max_new, max_scale, max, exp, sum, and for the product
    its name with _start, _scale, nothing and _store behind it; the last applies c. Raises ScheduleError: a product of other
    blocks, results of them that something else reads, sizes that are no constants.
    """
    program = sch.program
    f = _find(program, find_block(program, block))
    made = outputs(f.product)[0]
    top, total = outputs(f.top)[0], outputs(f.total)[0]
    *batch, row = [it for it in f.top.iters if it.kind == "spatial"]
    size, length = as_int(row.extent), next(as_int(it.extent) for it in f.top.iters if it.kind == "reduce")
    if size is None or length is None or any(as_int(it.extent) is None for it in f.product.iters):
        raise ScheduleError(NAME, "the sizes are no constants", program, block)
    if rows < 1 or columns < 1:
        raise ScheduleError(NAME, f"no tile has {rows} rows and {columns} columns", program, block)
    tiles = -(-length // columns)
    t, io = Var("t"), Var(f"{row.var.name}_0")
    outer = [Var(it.var.name) for it in batch]

    timed = (*top.shape, const(tiles))
    acc = Buffer(f"{made.name}_sum", made.dtype, made.shape)
    local_max, new_max = Buffer(f"{top.name}_tile", top.dtype, timed), Buffer(f"{top.name}_new", top.dtype, timed)
    scale, local_sum = Buffer(f"{top.name}_scale", top.dtype, timed), Buffer(f"{total.name}_tile", total.dtype, timed)
    gone = {f.top.name, f.exp.name, f.total.name, f.weights.name, f.product.name}
    taken = {b.name for b in blocks(program)} - gone

    def nest(name: str, over: Sequence[IterVar], body: Stmt, init: Stmt | None = None, step: Var | None = None) -> Stmt:
        """A block of this name in loops over the rows of a tile and some more axes; `over` are its iteration variables:
        batch, row, then `step` (the tile) and others."""
        inner: list[For] = []
        bindings: list[Expr] = []
        guard: Expr = TRUE
        bindings += outer
        for it in over[len(batch):]:
            if it.var is step:
                bindings.append(t)
                continue
            v = Var(it.var.name)
            n = rows if it.var is row.var else as_int(it.extent)
            inner.append(For(v, ZERO, const(n or 0), seq()))
            bindings.append(io * rows + v if it.var is row.var else v)
            if it.var is row.var and size % rows:
                guard = Lt(bindings[-1], const(size))
        while name in taken:
            name += "_"
        taken.add(name)
        out: Stmt = Block(name, tuple(over), tuple(bindings), guard, body, init)
        out = fresh_copy(out)
        for loop in reversed(inner):
            out = loop.replace(body=out)
        return out

    at = tuple([it.var for it in (*batch, row)])
    step = Var("vt")
    tile, turn = IterVar(step, const(tiles)), IterVar(step, const(tiles), "reduce")
    j = Var("vj")
    of_rows = [*batch, row]
    score = Load(f.scores, (*at, step * columns + j))
    low = lowest(top.dtype)
    newest = Load(new_max, (*at, step))
    safe = Select(newest.eq(low), const(0, top.dtype), newest)  # a tile without anything: exp(-inf - 0) is 0

    def power(x: Expr) -> Expr:
        """exp(x - new maximum), as block exp writes it."""
        def visit(n: Expr) -> Expr:
            if isinstance(n, Load):
                return x if n.buffer is f.scores else safe
            return n.map(visit)
        assert isinstance(f.exp.body, Store)
        return visit(f.exp.body.value)

    def inside(x: Expr, otherwise: Expr) -> Expr:
        """`x` for the columns that there are."""
        return Guard(step * columns + j < const(length), x, otherwise) if length % columns else x

    old_e = outputs(f.exp)[0]
    e = old_e.replace(shape=(*old_e.shape[:-1], const(tiles * columns)))
    red = [IterVar(j, const(columns), "reduce")]
    p_iters = [it for it in f.product.iters if it.kind == "spatial"]
    summed = next(it for it in f.product.iters if it.kind == "reduce")
    names_of = _rows_of(f, at)
    into = tuple([substitute(i, names_of) for i in f.product.body.indices])  # type: ignore[attr-defined]
    names_of |= {it.var: ZERO for it in p_iters if it.var not in names_of and as_int(it.extent) == 1}
    into = tuple([substitute(i, names_of) for i in into])
    others = [it for it in p_iters if it.var not in names_of]
    value = substitute(f.values, {**names_of, summed.var: step * columns + j})
    current = Load(acc, into)
    start = [nest(f"{f.top.name}_start", of_rows, Store(top, at, low)),
             nest(f"{f.total.name}_start", of_rows, Store(total, at, const(0, total.dtype))),
             nest(f"{f.product.name}_start", [*of_rows, *others], Store(acc, into, const(0, acc.dtype)))]
    here = (*at, step)
    turns = [
        nest(f"{f.top.name}_tile", [*of_rows, tile, *red],
             Store(local_max, here, Max(Load(local_max, here), inside(score, low))), Store(local_max, here, low), step),
        nest(f"{f.top.name}_new", [*of_rows, tile],
             Store(new_max, here, maximum(Load(top, at), Load(local_max, here))), None, step),
        nest(f"{f.top.name}_scale", [*of_rows, tile], Store(scale, here, power(Load(top, at))), None, step),
        nest(f.top.name, [*of_rows, turn], Store(top, at, Load(new_max, here)), None, step),
        nest(f.exp.name, [*of_rows, tile, IterVar(j, const(columns))],
             Store(e, (*at, step * columns + j), inside(power(score), const(0, e.dtype))), None, step),
        nest(f"{f.total.name}_tile", [*of_rows, tile, *red],
             Store(local_sum, here, Load(local_sum, here) + Load(e, (*at, step * columns + j))),
             Store(local_sum, here, const(0, total.dtype)), step),
        nest(f.total.name, [*of_rows, turn],
             Store(total, at, Load(total, at) * Load(scale, here) + Load(local_sum, here)), None, step),
        nest(f"{f.product.name}_scale", [*of_rows, turn, *others], Store(acc, into, current * Load(scale, here)), None,
             step),
        nest(f.product.name, [*of_rows, turn, *others, *red],
             Store(acc, into, current + Load(e, (*at, step * columns + j)) * inside(value, const(0, value.dtype))), None,
             step)]
    store = nest(f"{f.product.name}_store", [*of_rows, *others], Store(made, into, _quotient(f, acc, into, at)))
    body: Stmt = seq(*start, For(t, ZERO, const(tiles), seq(*turns)), store)
    body = For(io, ZERO, const(-(-size // rows)), body)
    for it, v in reversed(list(zip(batch, outer, strict=True))):
        body = For(v, ZERO, it.extent, body)
    for old, new in ((f.top, None), (f.exp, None), (f.total, None), (f.weights, None), (f.product, body)):
        around = loops_around(program, old)
        program = edit(program, around[0] if around else old, new)
    for b in (old_e, outputs(f.weights)[0]):
        program = deallocate(program, b)
    for b in (e, acc, local_max, new_max, scale, local_sum):
        program = allocate(program, b)
    sch.program = program
    return io, t


def _rows_of(f: _Found, at: tuple[Var, ...]) -> dict[Var, Expr]:
    """The product's variables as those of the rows, by how it reads the weights."""
    read = next(n for n in walk(f.product.body) if isinstance(n, Load) and n.buffer is outputs(f.weights)[0])
    return {i: v for i, v in zip(read.indices[:-1], at, strict=True) if isinstance(i, Var)}


def _quotient(f: _Found, acc: Buffer, into: tuple[Expr, ...], at: tuple[Var, ...]) -> Expr:
    """What the weights do to exponentials, done to the finished sums of their products."""
    weights = f.weights.body
    assert isinstance(weights, Store)
    own = {i: v for i, v in zip(weights.indices[:-1], at, strict=True) if isinstance(i, Var)}

    def visit(n: Expr) -> Expr:
        if isinstance(n, Load):
            return Load(acc, into) if n.buffer is outputs(f.exp)[0] else substitute(n, own)
        return n.map(visit)

    return visit(weights.value)


def _find(program: Program, product: Block) -> _Found:
    """The blocks around a product. Raises ScheduleError for one that is no softmax's."""
    ref = BlockRef(product.name)

    def no(why: str) -> ScheduleError:
        return ScheduleError(NAME, why, program, ref)

    makers = producers(program, product)
    red = reduction_of(product)
    if red is None or len(red.values) != 1 or not isinstance(red.values[0], Mul):
        raise no("it is no sum of products")
    loads = [x for x in (red.values[0].a, red.values[0].b) if isinstance(x, Load)]
    found = [(b, x) for b in makers for x in loads if x.buffer in outputs(b) and _is_weights(b)]
    if len(loads) != 2 or len(found) != 1:
        raise no("none of its factors are the weights of a softmax")
    weights, read = found[0]
    values = loads[1] if loads[0] is read else loads[0]
    summed = [it.var for it in product.iters if it.kind == "reduce"]
    places = all(isinstance(i, Var) or as_int(i) == 0 for i in read.indices)
    if len(summed) != 1 or read.indices[-1] is not summed[0] or not places:
        raise no("it does not add up along the rows of the weights")
    e_block = next((b for b in producers(program, weights) if _exponent(b)), None)
    if e_block is None:
        raise no("the weights are no exponentials")
    e = outputs(e_block)[0]
    total = next((b for b in consumers(program, e_block) if _adds(b, e)), None)
    if total is not None and total not in producers(program, weights):
        raise no("the weights are not divided by the sum itself")
    exponent = _exponent(e_block)
    assert exponent is not None
    s, m = exponent
    top = next((b for b in writers(program, m.buffer) if _greatest(b, s.buffer)), None)
    if total is None or top is None:
        raise no("the exponentials are not of a row less its maximum, or are not added up")
    for b, allowed in ((top, {e_block.name}), (e_block, {total.name, weights.name}), (weights, {product.name})):
        others = {c.name for c in consumers(program, b)} - allowed
        if others or any(is_parameter(program, x) for x in outputs(b)):
            raise no(f"what block {b.name} makes is read elsewhere")
    return _Found(top, e_block, total, weights, product, s.buffer, values)


def _is_weights(b: Block) -> bool:
    """Whether a block multiplies or divides each element of a row by something of the row."""
    if not isinstance(b.body, Store) or b.init is not None or not isinstance(b.body.value, Mul | Div):
        return False
    x, y = b.body.value.a, b.body.value.b
    if isinstance(b.body.value, Mul) and isinstance(y, Load) and _at(y, b.body.indices):
        x, y = y, x
    rest = [n for n in walk(y) if isinstance(n, Load)]
    return isinstance(x, Load) and _at(x, b.body.indices) and len(rest) == 1 and _at(rest[0], b.body.indices[:-1])


def _at(x: Load, indices: Sequence[Expr]) -> bool:
    """Whether an element is the one of these indices; along an axis of one there is no other."""
    return len(x.indices) == len(indices) and all(
        i == own or as_int(n) == 1 for i, own, n in zip(x.indices, indices, x.buffer.shape, strict=True))


def _exponent(b: Block) -> tuple[Load, Load] | None:
    """S and M of a block E = exp(S - M), also where arguments that give zero are cut off."""
    if not isinstance(b.body, Store) or b.init is not None:
        return None
    e = b.body.value
    if not isinstance(e, Call) or e.name != "exp":
        return None
    d = e.args[0]
    if isinstance(d, Select) and isinstance(d.cond, Lt) and d.cond.a == d.b and isinstance(d.cond.b, Const) and isinstance(
            d.a, Const) and d.a.value == -float("inf"):
        d = d.b
    if not isinstance(d, Sub) or not isinstance(d.a, Load) or not isinstance(d.b, Load):
        return None
    return (d.a, d.b) if _at(d.a, b.body.indices) and _at(d.b, b.body.indices[:-1]) else None


def _adds(b: Block, e: Buffer) -> bool:
    """Whether a block is the sum of rows of `e`."""
    return _over_rows(b, e, const(0, e.dtype)) and isinstance(b.body.value, Add)  # type: ignore[attr-defined]


def _greatest(b: Block, s: Buffer) -> bool:
    return _over_rows(b, s, lowest(s.dtype)) and isinstance(b.body.value, Max)  # type: ignore[attr-defined]


def _over_rows(b: Block, x: Buffer, start: Expr) -> bool:
    """Whether a block reduces all elements of each row of `x`, from `start`."""
    if not isinstance(b.body, Store) or not isinstance(b.init, Store) or b.init.value != start:
        return False
    reduced = [it for it in b.iters if it.kind == "reduce"]
    loads = [n for n in walk(b.body.value) if isinstance(n, Load) and n.buffer is not b.body.buffer]
    return (len(reduced) == 1 and reduced[0].extent == x.shape[-1] and len(loads) == 1 and loads[0].buffer is x
            and _at(loads[0], (*b.body.indices, reduced[0].var)) and len(b.iters) == len(b.body.indices) + 1)

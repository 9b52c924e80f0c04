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
    size, length = _rows_and_columns(f)
    if size is None or length is None or any(as_int(it.extent) is None for it in f.product.iters):
        raise ScheduleError(NAME, "the sizes are no constants", program, block)
    if rows < 1 or columns < 1:
        raise ScheduleError(NAME, f"no tile has {rows} rows and {columns} columns", program, block)
    old = (f.top, f.exp, f.total, f.weights, f.product)
    taken = {b.name for b in blocks(program)} - {b.name for b in old}
    nest = _Nest(f, rows, columns, size, length, taken)
    body = nest.statement()
    for b, new in zip(old, (None, None, None, None, body), strict=True):
        around = loops_around(program, b)
        program = edit(program, around[0] if around else b, new)
    for buffer in (outputs(f.exp)[0], outputs(f.weights)[0]):
        program = deallocate(program, buffer)
    for buffer in nest.buffers:
        program = allocate(program, buffer)
    sch.program = program
    return nest.io, nest.t


def _rows_and_columns(f: _Found) -> tuple[int | None, int | None]:
    """How many rows S has, and how long they are; None for what is no constant."""
    row = [it for it in f.top.iters if it.kind == "spatial"][-1]
    return as_int(row.extent), next(as_int(it.extent) for it in f.top.iters if it.kind == "reduce")


class _Nest:
    """What the blocks found become: loops `io` over tiles of rows and `t` over tiles of columns, with new blocks in them.

    In these, `at` are the indices of a row, `here` those of a row and the tile's number `step`, and `column` is the column
    j of that tile.
    """

    def __init__(self, f: _Found, rows: int, columns: int, size: int, length: int, taken: set[str]) -> None:
        self.f, self.rows, self.columns, self.size, self.length, self.taken = f, rows, columns, size, length, taken
        *self.batch, self.row = [it for it in f.top.iters if it.kind == "spatial"]
        self.tiles = -(-length // columns)
        self.t, self.io = Var("t"), Var(f"{self.row.var.name}_0")
        self.outer = [Var(it.var.name) for it in self.batch]
        self.step, self.j = Var("vt"), Var("vj")
        self.at = tuple([it.var for it in (*self.batch, self.row)])
        self.here = (*self.at, self.step)
        self.column = self.step * columns + self.j
        self.made, self.top, self.total = outputs(f.product)[0], outputs(f.top)[0], outputs(f.total)[0]
        e = outputs(f.exp)[0]
        timed = (*self.top.shape, const(self.tiles))
        self.e = e.replace(shape=(*e.shape[:-1], const(self.tiles * columns)))
        self.acc = Buffer(f"{self.made.name}_sum", self.made.dtype, self.made.shape)
        self.local_max = Buffer(f"{self.top.name}_tile", self.top.dtype, timed)
        self.new_max = Buffer(f"{self.top.name}_new", self.top.dtype, timed)
        self.scale = Buffer(f"{self.top.name}_scale", self.top.dtype, timed)
        self.local_sum = Buffer(f"{self.total.name}_tile", self.total.dtype, timed)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return self.e, self.acc, self.local_max, self.new_max, self.scale, self.local_sum

    def statement(self) -> Stmt:
        """All of it, in loops over the batch."""
        f, of_rows = self.f, (*self.batch, self.row)
        into, others, value = self._product()
        low, acc = lowest(self.top.dtype), self.acc
        start = [self._block(f"{f.top.name}_start", of_rows, Store(self.top, self.at, low)),
                 self._block(f"{f.total.name}_start", of_rows, Store(self.total, self.at, const(0, self.total.dtype))),
                 self._block(f"{f.product.name}_start", (*of_rows, *others), Store(acc, into, const(0, acc.dtype)))]
        turns = [*self._softmax_of_tile(of_rows), *self._product_of_tile(of_rows, into, others, value)]
        store = self._block(f"{f.product.name}_store", (*of_rows, *others),
                            Store(self.made, into, _quotient(f, acc, into, self.at)))
        body: Stmt = seq(*start, For(self.t, ZERO, const(self.tiles), seq(*turns)), store)
        body = For(self.io, ZERO, const(-(-self.size // self.rows)), body)
        for it, v in reversed(list(zip(self.batch, self.outer, strict=True))):
            body = For(v, ZERO, it.extent, body)
        return body

    def _softmax_of_tile(self, of_rows: tuple[IterVar, ...]) -> list[Stmt]:
        """The tile's maximum, the new maximum, what older sums are scaled by, exponentials, and their sum."""
        f, here, at, column = self.f, self.here, self.at, self.column
        tile, turn = IterVar(self.step, const(self.tiles)), IterVar(self.step, const(self.tiles), "reduce")
        along = IterVar(self.j, const(self.columns), "reduce")
        score, low = Load(f.scores, (*at, column)), lowest(self.top.dtype)
        return [
            self._block(f"{f.top.name}_tile", (*of_rows, tile, along),
                        Store(self.local_max, here, Max(Load(self.local_max, here), self._inside(score, low))),
                        Store(self.local_max, here, low)),
            self._block(f"{f.top.name}_new", (*of_rows, tile),
                        Store(self.new_max, here, maximum(Load(self.top, at), Load(self.local_max, here)))),
            self._block(f"{f.top.name}_scale", (*of_rows, tile), Store(self.scale, here, self._power(Load(self.top, at)))),
            self._block(f.top.name, (*of_rows, turn), Store(self.top, at, Load(self.new_max, here))),
            self._block(f.exp.name, (*of_rows, tile, IterVar(self.j, const(self.columns))),
                        Store(self.e, (*at, column), self._inside(self._power(score), const(0, self.e.dtype)))),
            self._block(f"{f.total.name}_tile", (*of_rows, tile, along),
                        Store(self.local_sum, here, Load(self.local_sum, here) + Load(self.e, (*at, column))),
                        Store(self.local_sum, here, const(0, self.total.dtype))),
            self._block(f.total.name, (*of_rows, turn),
                        Store(self.total, at, Load(self.total, at) * Load(self.scale, here) + Load(self.local_sum, here)))]

    def _product_of_tile(self, of_rows: tuple[IterVar, ...], into: tuple[Expr, ...], others: list[IterVar],
                         value: Expr) -> list[Stmt]:
        """The sums of the product so far scaled, and what the tile adds to them."""
        f, current = self.f, Load(self.acc, into)
        turn = IterVar(self.step, const(self.tiles), "reduce")
        along = IterVar(self.j, const(self.columns), "reduce")
        weight = Load(self.e, (*self.at, self.column))
        return [
            self._block(f"{f.product.name}_scale", (*of_rows, turn, *others),
                        Store(self.acc, into, current * Load(self.scale, self.here))),
            self._block(f.product.name, (*of_rows, turn, *others, along),
                        Store(self.acc, into, current + weight * self._inside(value, const(0, value.dtype))))]

    def _product(self) -> tuple[tuple[Expr, ...], list[IterVar], Expr]:
        """Where an element of the product is stored, its variables beside those of rows, and the element of V that a
        weight is multiplied by, in the variables of the new blocks."""
        product = self.f.product
        assert isinstance(product.body, Store)
        axes = [it for it in product.iters if it.kind == "spatial"]
        summed = next(it for it in product.iters if it.kind == "reduce")
        names: dict[Var, Expr] = _rows_of(self.f, self.at)
        names |= {it.var: ZERO for it in axes if it.var not in names and as_int(it.extent) == 1}
        into = tuple([substitute(i, names) for i in product.body.indices])
        value = substitute(self.f.values, {**names, summed.var: self.column})
        return into, [it for it in axes if it.var not in names], value

    def _block(self, name: str, over: tuple[IterVar, ...], body: Stmt, init: Stmt | None = None) -> Stmt:
        """A block of this name in loops over the rows of a tile and some more axes; `over` are its iteration variables:
        batch, row, and others, the tile's number among them."""
        inner: list[For] = []
        bindings: list[Expr] = [*self.outer]
        guard: Expr = TRUE
        for it in over[len(self.batch):]:
            if it.var is self.step:
                bindings.append(self.t)
                continue
            v, of_row = Var(it.var.name), it.var is self.row.var
            inner.append(For(v, ZERO, const(self.rows if of_row else as_int(it.extent) or 0), seq()))
            bindings.append(self.io * self.rows + v if of_row else v)
            if of_row and self.size % self.rows:
                guard = Lt(bindings[-1], const(self.size))
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        out: Stmt = fresh_copy(Block(name, over, tuple(bindings), guard, body, init))
        for loop in reversed(inner):
            out = loop.replace(body=out)
        return out

    def _power(self, x: Expr) -> Expr:
        """exp(x - new maximum), as block exp writes it; of a tile without anything, exp(-inf - 0) is 0."""
        newest = Load(self.new_max, self.here)
        safe = Select(newest.eq(lowest(self.top.dtype)), const(0, self.top.dtype), newest)

        def visit(n: Expr) -> Expr:
            if isinstance(n, Load):
                return x if n.buffer is self.f.scores else safe
            return n.map(visit)
        assert isinstance(self.f.exp.body, Store)
        return visit(self.f.exp.body.value)

    def _inside(self, x: Expr, otherwise: Expr) -> Expr:
        """`x` for the columns that there are."""
        return Guard(self.column < const(self.length), x, otherwise) if self.length % self.columns else x


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

"""ONNX's operators of training: dropout with masks, batch statistics, gradients, optimizers; and random numbers.

A compiled model is a function: it draws the same numbers in every run. Given a seed, up to MAX_DRAWN of them are those that
NumPy's Mersenne Twister draws for it (as ONNX's own implementation does), as a constant of the model. More, or sizes that
are not known, come from a counter through the mixing function of SplitMix64 (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014): each element depends on its place alone, so they are made in parallel.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from tilewright.core.dtype import DType, boolean, f32, f64, i64, u64
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.frontend.onnx.tensors import element_type
from tilewright.graph.gradient import between, gradients
from tilewright.graph.infer import constant_of, element_count, product
from tilewright.graph.ir import Operation, TensorType, Value
from tilewright.loop.ir import Expr

TRAINING = "ai.onnx.preview.training"
MAX_DRAWN = 1 << 20


# ---- random numbers --------------------------------------------------------------------------------------------------
def _seed(c: Context, seed: float | None) -> int:
    """The node's seed; where it has none, a number that its name and place give."""
    return int(seed) % 2**32 if seed is not None and math.isfinite(seed) else zlib.crc32(f"{c.loc} {c.outputs}".encode())


def uniform(c: Context, shape: Sequence[Expr], seed: float | None, stream: int = 0) -> Value:
    """Uniform f32 numbers in [0, 1)."""
    count, key = element_count(TensorType(f32, tuple(shape))), _seed(c, seed)
    if count is not None and count <= MAX_DRAWN and not stream:
        drawn = np.random.RandomState(key).random_sample(count)
        few = np.floor(drawn * 2**24) / 2**24  # the numbers of f32 below 1
        return c.b.constant(few.astype(np.float32).reshape([getattr(d, "value", 0) for d in shape]), f"{c.outputs[0]}.drawn")
    return c.b.reshape(_counted(c, product(shape), key + (stream << 32)), shape)


def _counted(c: Context, count: Expr, key: int) -> Value:
    def number(v: int) -> Value:
        return c.b.constant(np.uint64(v % 2**64))
    ones = c.add("full", shape=[count], value=1, dtype=i64)
    first, step = c.b.constant(np.int64(0)), c.b.constant(np.int64(1))
    limit = c.b.reshape(c.add("shape_of", ones), [])
    z = c.cast(c.add("range", first, limit, step), u64)
    z = c.add("add", c.add("mul", z, number(0x9E3779B97F4A7C15)), number(key * 0xD1B54A32D192ED03 + 1))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = c.add("mul", c.add("bitwise_xor", z, c.add("shift_right", z, number(shift))), number(factor))
    z = c.add("bitwise_xor", z, c.add("shift_right", z, number(31)))
    top = c.cast(c.cast(c.add("shift_right", z, number(40)), i64), f32)
    return c.add("mul", top, c.const(2.0**-24, f32))


def normal(c: Context, shape: Sequence[Expr], seed: float | None) -> Value:
    """Normal f32 numbers of mean 0 and deviation 1; counted ones by Box and Muller's transformation (1958)."""
    count = element_count(TensorType(f32, tuple(shape)))
    if count is not None and count <= MAX_DRAWN:
        drawn = np.random.RandomState(_seed(c, seed)).standard_normal(count).astype(np.float32)
        return c.b.constant(drawn.reshape([getattr(d, "value", 0) for d in shape]), f"{c.outputs[0]}.drawn")
    u, v = uniform(c, shape, seed, 1), uniform(c, shape, seed, 2)
    radius = c.add("sqrt", c.add("mul", c.add("log", c.add("sub", c.const(1, f32), u)), c.const(-2, f32)))
    return c.add("mul", radius, c.add("cos", c.add("mul", v, c.const(2 * math.pi, f32))))


def _random_type(c: Context, like: DType | None) -> DType:
    number = c.a("dtype")
    return element_type(number, c.loc) if number else like if like is not None else f32


def _random(c: Context, shape: Sequence[Expr], like: DType | None) -> Value:
    to = _random_type(c, like)
    if c.op.startswith("RandomNormal"):
        drawn, scale, shift = normal(c, shape, c.a("seed")), c.a("scale", 1.0), c.a("mean", 0.0)
    else:
        drawn, shift = uniform(c, shape, c.a("seed")), c.a("low", 0.0)
        scale = c.a("high", 1.0) - shift
    y = c.add("add", c.add("mul", drawn, c.const(scale, f32)), c.const(shift, f32))
    return c.cast(y, to)


@onnx_op("RandomUniform", "RandomNormal")
def random(c: Context) -> Result:
    shape = c.add("full", shape=c.a("shape"), value=0, dtype=boolean).shape
    return _random(c, shape, None)


@onnx_op("RandomUniformLike", "RandomNormalLike")
def random_like(c: Context) -> Result:
    return _random(c, c.x().shape, c.x().dtype if c.x().dtype.is_float else None)


@onnx_op("Bernoulli")
def bernoulli(c: Context) -> Result:
    """1 where a uniform number is below the element."""
    x = c.x()
    hit = c.add("less", c.cast(uniform(c, x.shape, c.a("seed")), x.dtype), x)
    return c.cast(hit, _random_type(c, x.dtype))


@onnx_op("Multinomial")
def multinomial(c: Context) -> Result:
    """Classes by the logarithms of their weights: how many sums of the first probabilities a uniform number reaches."""
    x, n = c.cast(c.x(), f32), c.a("sample_size", 1)
    rows, classes = x.shape
    sums = c.add("cumsum", c.add("softmax", x, axis=1), axis=1)
    drawn = uniform(c, c.add("full", shape=[rows, n, 1], value=0, dtype=boolean).shape, c.a("seed"))
    reached = c.add("greater_equal", drawn, c.b.reshape(sums, [rows, 1, classes]))
    to = element_type(c.a("dtype") or 6, c.loc)
    found = c.add("reduce_sum", c.cast(reached, i64), axes=(2,), keepdims=False)
    last = c.b.reshape(c.add("shape_of", x), [2])
    return c.cast(c.add("min", found, c.add("sub", c.b.squeeze(c.b.slice(last, {0: (1, 2, 1)}), [0]), c.const(1, i64))), to)


# ---- dropout ---------------------------------------------------------------------------------------------------------
@onnx_op("Dropout", since=7)
def dropout_inference(c: Context) -> Result:
    """Nothing is dropped outside training."""
    return _kept(c, boolean if c.since >= 10 else c.x().dtype)


def _kept(c: Context, mask: DType) -> Result:
    x = c.x()
    return (x, c.add("full", shape=x.shape, value=1, dtype=mask)) if c.wants(1) else x


@onnx_op("Dropout", since=12)
def dropout(c: Context) -> Result:
    """Whether the model trains may be data: then the mask is all true where it does not."""
    x, ratio, mode = c.x(), c.opt(1), c.opt(2)
    known = None if mode is None else constant_of(mode)
    if mode is None or known is not None and not known.reshape(-1)[0]:
        return _kept(c, boolean)
    ratio = c.const(0.5, x.dtype) if ratio is None else c.cast(c.reshape(ratio, []), x.dtype)
    if known is None:
        ratio = c.add("where", c.reshape(mode, []), ratio, c.const(0, x.dtype))
    return random_dropout(c, x, ratio, c.a("seed"))


def random_dropout(c: Context, x: Value, ratio: Value, seed: float | None) -> tuple[Value, Value]:
    """x / (1 - ratio) where a uniform number is at least `ratio`, else 0; and where that is."""
    keep = c.add("greater_equal", uniform(c, x.shape, seed), c.cast(ratio, f32))
    scale = c.add("reciprocal", c.add("sub", c.const(1, x.dtype), ratio))
    return c.add("where", keep, c.add("mul", x, scale), c.const(0, x.dtype)), keep


# ---- batch normalisation ---------------------------------------------------------------------------------------------
@onnx_op("BatchNormalization", since=7)
def batch_norm(c: Context) -> Result:
    return batch_norm_of(c, training=bool(c.a("training_mode")) or c.since < 14 and len(c.outputs) > 1)


def batch_norm_of(c: Context, training: bool) -> Result:
    """In training: statistics of the batch over all axes but the channels', and running ones moved towards them."""
    c.expect(c.a("spatial", 1) == 1, "spatial = 0")
    x = c.x()
    scale, bias, mean, variance = [c.cast(c.x(k), x.dtype) for k in range(1, 5)]
    if not training:
        c.expect(not any(c.wants(k) for k in range(1, 5)), "statistics as outputs outside training")
        return c.add("batch_norm", x, scale, bias, mean, variance, eps=c.a("epsilon"))
    axes, wide = tuple([k for k in range(x.rank) if k != 1]), f64 if x.dtype is f64 else f32
    w = c.cast(x, wide)
    saved = c.add("reduce_mean", w, axes=axes)
    centered = c.add("sub", w, saved)
    spread = c.add("reduce_mean", c.add("mul", centered, centered), axes=axes, keepdims=False)
    saved = c.b.reshape(saved, [x.shape[1]])
    y = c.add("batch_norm", x, scale, bias, c.cast(saved, x.dtype), c.cast(spread, x.dtype), eps=c.a("epsilon"))
    momentum = c.a("momentum", 0.9)

    def moved(old: Value, new: Value) -> Value:
        kept = c.add("mul", c.cast(old, wide), c.const(momentum, wide))
        return c.cast(c.add("add", kept, c.add("mul", new, c.const(1 - momentum, wide))), old.dtype)
    running = [moved(c.x(k), v) for k, v in ((3, saved), (4, spread)) if c.wants(k - 2)]
    out: list[Value | None] = [y, None, None, None, None]
    if c.wants(1):
        out[1] = running.pop(0)
    if c.wants(2):
        out[2] = running.pop(0)
    if c.wants(3):
        out[3] = c.cast(saved, x.dtype)
    if c.wants(4):
        out[4] = c.cast(spread, x.dtype)
    return out


# ---- gradients -------------------------------------------------------------------------------------------------------
@onnx_op("Gradient", domain=TRAINING)
def gradient(c: Context) -> Result:
    """What computes y from xs and zs becomes what computes the gradients. Where the inputs are other values than those
    named, it is first put there again, with the inputs in their places."""
    xs, zs = list(c.a("xs")), list(c.a("zs") or ())
    if len(c.inputs) != len(xs) + len(zs):
        raise c.error("onnx-invalid-graph", f"Gradient has {len(c.inputs)} inputs for {len(xs)} xs and {len(zs)} zs")
    named = [_tensor(c, name) for name in (*xs, *zs)]
    y, given = _tensor(c, c.a("y")), c.all()
    operations = list(c.b.operations)
    if any(v is not x for v, x in zip(given, named, strict=True)):
        y, operations = _again(c, operations, y, dict(zip(named, given, strict=True)))
    found = gradients(operations, y, given[:len(xs)], c.b)
    return [v if c.wants(k) else None for k, v in enumerate(found)]


def _tensor(c: Context, name: str) -> Value:
    found = c.named(name)
    if not isinstance(found, Value):
        raise c.error("onnx-invalid-graph", f"Gradient: {name!r} is no tensor")
    return found


def _again(c: Context, operations: list[Operation], y: Value, instead: dict[Value, Value]) -> tuple[Value, list[Operation]]:
    """The operations from some values to y once more, with other values in their places."""
    start = len(c.b.operations)
    for op in between(operations, y, list(instead)):
        made = c.b.add_all(op.op, [v if v is None else instead.get(v, v) for v in op.inputs], op.attrs,
                           name=op.outputs[0].name, loc=op.loc, regions=op.regions)
        instead |= dict(zip(op.outputs, made, strict=True))
    return instead.get(y, y), c.b.operations[start:]


# ---- optimizers ------------------------------------------------------------------------------------------------------
def _scalars(c: Context) -> tuple[Value, Value]:
    """Learning rate and count of updates, as they are given: a number each."""
    return c.reshape(c.x(0), []), c.reshape(c.x(1), [])


def _tensors(c: Context, kinds: int) -> list[list[Value]]:
    """The tensors behind rate and count: for each that is trained its value, gradient and so on."""
    count = len(c.inputs) - 2
    if count % kinds:
        raise c.error("onnx-invalid-graph", f"{c.op} has {count} tensors, which do not fall into {kinds} kinds")
    n = count // kinds
    return [[c.x(2 + k * n + j) for k in range(kinds)] for j in range(n)]


def _times(c: Context, factor: float | Value, v: Value) -> Value:
    return c.add("mul", v, c.cast(factor, v.dtype) if isinstance(factor, Value) else c.const(factor, v.dtype))


def _regularized(c: Context, x: Value, g: Value) -> Value:
    return c.add("add", _times(c, c.a("norm_coefficient", 0.0), x), g)


@onnx_op("Momentum", domain=TRAINING)
def momentum(c: Context) -> Result:
    rate, t = _scalars(c)
    alpha, mode = c.a("alpha"), c.a("mode")
    c.expect(mode in ("standard", "nesterov"), f"mode {mode!r}")
    first = c.add("greater", t, c.const(0, t.dtype))
    beta = c.add("where", first, c.const(c.a("beta"), f32), c.const(1, f32))
    xs: list[Value] = []
    vs: list[Value] = []
    for x, g, v in _tensors(c, 3):
        g = _regularized(c, x, g)
        new = c.add("add", _times(c, alpha, v), _times(c, beta, g))
        step = new if mode == "standard" else c.add("add", g, _times(c, alpha, new))
        xs.append(c.add("sub", x, _times(c, rate, step)))
        vs.append(new)
    return xs + vs


@onnx_op("Adagrad", domain=TRAINING)
def adagrad(c: Context) -> Result:
    rate, t = _scalars(c)
    decay = c.add("add", _times(c, c.a("decay_factor", 0.0), c.cast(t, rate.dtype)), c.const(1, rate.dtype))
    rate = c.add("div", rate, decay)
    xs: list[Value] = []
    hs: list[Value] = []
    for x, g, h in _tensors(c, 3):
        g = _regularized(c, x, g)
        new = c.add("add", h, c.add("mul", g, g))
        scale = c.add("add", c.add("sqrt", new), c.const(c.a("epsilon", 0.0), new.dtype))
        xs.append(c.add("sub", x, c.add("div", _times(c, rate, g), scale)))
        hs.append(new)
    return xs + hs


@onnx_op("Adam", domain=TRAINING)
def adam(c: Context) -> Result:
    """The bias of both moments is corrected in the rate, from the first update on."""
    rate, t = _scalars(c)
    alpha, beta = c.a("alpha"), c.a("beta")
    steps, one = c.cast(t, rate.dtype), c.const(1, rate.dtype)

    def corrected(base: float) -> Value:
        return c.add("sub", one, c.add("pow", c.const(base, rate.dtype), steps))
    late = c.add("div", c.add("mul", rate, c.add("sqrt", corrected(beta))), corrected(alpha))
    rate = c.add("where", c.add("greater", t, c.const(0, t.dtype)), late, rate)
    xs: list[Value] = []
    vs: list[Value] = []
    hs: list[Value] = []
    for x, g, v, h in _tensors(c, 4):
        g = _regularized(c, x, g)
        v = c.add("add", _times(c, alpha, v), _times(c, 1 - alpha, g))
        h = c.add("add", _times(c, beta, h), _times(c, 1 - beta, c.add("mul", g, g)))
        scale = c.add("add", c.add("sqrt", h), c.const(c.a("epsilon", 0.0), h.dtype))
        x = c.add("sub", x, _times(c, rate, c.add("div", v, scale)))
        xs.append(_times(c, 1 - c.a("norm_coefficient_post", 0.0), x))
        vs.append(v)
        hs.append(h)
    return xs + vs + hs

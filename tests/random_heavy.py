"""Steps of random graphs that do sums of products and what goes with them: matrix products, convolutions, pools,
normalization, resampling, recurrent layers."""
from __future__ import annotations

import numpy as np

from tests.random_graph import UNIT, Graph, Unfit, Value, is_number
from tests.random_operators import broadcast, step

F32 = UNIT["float32"]


def product_error(a: Value, b: float, b_error: float, terms: int) -> float:
    return terms * (a.error * b + b_error * a.bound + F32 * a.bound * b)


@step(3)
def matmul(g: Graph) -> None:
    v = g.ranked(g.rng.choice([2, 3, 4]))
    k, kind = v.shape[-1], g.rng.randrange(4)
    n = max(k)
    if kind == 0 and is_number(k):  # a vector, or a matrix
        out = [] if g.rng.random() < 0.2 else [g.rng.choice([1, 3, 8, 17])]
        w = g.floats(n, *out)
        g.add("MatMul", [v, w], (*v.shape[:-1], *g.dims(*out)), v, bound=n * v.bound, fraction=0,
              error=product_error(v, 1, 0, n))
    elif kind == 1:  # with itself, turned
        perm = [*range(v.rank - 2), v.rank - 1, v.rank - 2]
        v = g.squashed(v)
        t = g.node("Transpose", [v], perm=perm)[0]
        g.add("MatMul", [v, t], (*v.shape[:-1], v.shape[-2]), v, bound=n, fraction=0, error=product_error(v, 1, v.error, n))
    elif kind == 2 and v.rank == 2 and is_number(k):
        m, turned = g.rng.choice([1, 4, 16]), g.rng.randrange(2)
        c = [g.floats(*g.rng.choice([(), (1,), (m,)]))] if g.rng.random() < 0.7 else []
        g.add("Gemm", [v, g.floats(*((m, n) if turned else (n, m))), *c], (v.shape[0], g.dim(m)), v, bound=n * v.bound + 1,
              fraction=0, error=product_error(v, 1, 0, n) + F32, transB=turned, alpha=0.5, beta=1.0)
    elif v.rank >= 2 and is_number(k):
        text = {2: "ij,kj->ki", 3: "bij,kj->bik", 4: "abij,kj->aibk"}[v.rank]
        d = (*v.shape[:-1], g.dim(3))
        shape = {2: (g.dim(3), d[0]), 3: d, 4: (d[0], *d[2:-1], d[1], d[-1])}[v.rank]
        g.add("Einsum", [v, g.floats(3, n)], shape, v, bound=n * v.bound, fraction=0, error=product_error(v, 1, 0, n),
              equation=text)
    else:
        raise Unfit


@step()
def small_integers(g: Graph) -> None:
    v = g.pick(lambda v: v.type in ("uint8", "int8") and v.rank == 2 and is_number(v.shape[1]) and v.bound < 50)
    n = v.shape[1][0]
    w = g.weight(g.numpy().integers(-9, 9, (n, 3)).astype(np.int8))
    g.add("MatMulInteger", [v, w], (v.shape[0], g.dim(3)), v, type="int32", bound=9 * n * v.bound)


@step()
def quantized(g: Graph) -> None:
    """A power of two as scale: rounding is exact."""
    v = g.pick(lambda v: v.exact and v.type == "float32" and v.bound < 30)
    scale, zero = g.weight(np.float32(0.5)), g.weight(np.uint8(128))
    q = g.add("QuantizeLinear", [v, scale, zero], v.shape, v, type="uint8", bound=256, fraction=0)
    g.add("DequantizeLinear", [q, scale, zero], v.shape, v, bound=v.bound + 1, fraction=1)


def spatial(g: Graph) -> Value:
    v = g.ranked(g.rng.choice([3, 4, 4, 4, 5]))
    if not is_number(v.shape[1]):
        raise Unfit
    return v


@step(4)
def conv(g: Graph) -> None:
    v = spatial(g)
    dims, c = v.rank - 2, v.shape[1][0]
    k, stride, apart = ([g.rng.choice(of) for _ in range(dims)] for of in ([1, 2, 3], [1, 1, 2], [1, 1, 2]))
    pads = [g.rng.randrange(2) for _ in range(2 * dims)]
    groups = g.rng.choice([1, 1, c, *([2] if c % 2 == 0 else [])])
    m = groups * g.rng.choice([1, 2, 5]) if groups > 1 else g.rng.choice([1, 5, 16])
    out = tuple([tuple([(x + pads[i] + pads[i + dims] - (k[i] - 1) * apart[i] - 1) // stride[i] + 1 for x in d])
                 for i, d in enumerate(v.shape[2:])])
    if min(min(d) for d in out) < 1 or m > 40:
        raise Unfit
    terms = c // groups * int(np.prod(k))
    bias = [g.floats(m)] if g.rng.random() < 0.5 else []
    g.add("Conv", [v, g.floats(m, c // groups, *k), *bias], (v.shape[0], g.dim(m), *out), v, bound=terms * v.bound + 1,
          error=product_error(v, 1, 0, terms) + F32, fraction=0, kernel_shape=k, strides=stride, dilations=apart, pads=pads,
          group=groups)


@step()
def conv_transpose(g: Graph) -> None:
    v = spatial(g)
    dims, c = v.rank - 2, v.shape[1][0]
    k, stride = ([g.rng.choice(of) for _ in range(dims)] for of in ([1, 2, 3], [1, 2]))
    out = tuple([tuple([(x - 1) * stride[i] + k[i] for x in d]) for i, d in enumerate(v.shape[2:])])
    terms = c * int(np.prod(k))
    g.add("ConvTranspose", [v, g.floats(c, 3, *k)], (v.shape[0], g.dim(3), *out), v, bound=terms * v.bound, fraction=0,
          error=product_error(v, 1, 0, terms), strides=stride, kernel_shape=k)


@step(3)
def pool(g: Graph) -> None:
    v = spatial(g)
    dims = v.rank - 2
    op = g.rng.choice(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"])
    if op.startswith("Global"):
        terms = max(v.size(r) for r in range(g.runs))
        mean = op == "GlobalAveragePool"
        g.add(op, [v], (*v.shape[:2], *g.dims(*[1] * dims)), v, fraction=0 if mean else v.fraction,
              error=v.error + terms * F32 * v.bound if mean else v.error)
        return
    k, stride = ([g.rng.choice(of) for _ in range(dims)] for of in ([1, 2, 3], [1, 1, 2]))
    pads = [g.rng.randrange(2) if k[i % dims] > 1 else 0 for i in range(2 * dims)]
    ceil = 0 if op == "LpPool" else g.rng.randrange(2)
    sizes = [[(x + pads[i] + pads[i + dims] - k[i], stride[i], pads[i], x) for x in d] for i, d in enumerate(v.shape[2:])]
    if any(room < 0 or ceil and room % s for d in sizes for room, s, _, _ in d):
        ceil = 0
    if any(room < 0 for d in sizes for room, _, _, _ in d):
        raise Unfit
    out = tuple([tuple([room // s + 1 for room, s, _, _ in d]) for d in sizes])
    terms = int(np.prod(k))
    more = {"count_include_pad": g.rng.randrange(2)} if op == "AveragePool" else {"p": 2} if op == "LpPool" else {}
    bound = v.bound * (terms if op == "LpPool" else 1)
    error = v.error if op == "MaxPool" else terms * (v.error + F32 * v.bound)
    g.add(op, [v], (*v.shape[:2], *out), v, bound=bound, error=error, fraction=v.fraction if op == "MaxPool" else 0,
          kernel_shape=k, strides=stride, pads=pads, **({} if op == "LpPool" else {"ceil_mode": ceil}), **more)


@step(3)
def normalize(g: Graph) -> None:
    """With epsilons that keep slopes below 4."""
    op = g.rng.choice(["LayerNormalization", "InstanceNormalization", "BatchNormalization", "LRN", "GroupNormalization",
                       "LpNormalization", "RMSNormalization"])
    v = g.squashed(g.ranked(4 if op == "LRN" else g.rng.choice([3, 4])))
    if not is_number(v.shape[1]) or not is_number(v.shape[-1]):
        raise Unfit
    c, n = v.shape[1][0], max(v.size(r) for r in range(g.runs))
    match op:
        case "LayerNormalization":
            last = v.shape[-1][0]
            g.smooth(op, v, 8, 4 * last, inputs=[g.floats(last), *([g.floats(last)] if g.rng.random() < 0.5 else [])],
                     terms=last, axis=-1, epsilon=0.1)
        case "RMSNormalization" if g.opset >= 23:
            last = v.shape[-1][0]
            g.smooth(op, v, 8, 4, inputs=[g.floats(last)], terms=last, axis=-1, epsilon=0.1)
        case "InstanceNormalization":
            g.smooth(op, v, 8, 5, inputs=[g.floats(c), g.floats(c)], terms=n, epsilon=0.1)
        case "GroupNormalization" if g.opset >= 21:
            groups = g.rng.choice([d for d in (1, 2, 3, c) if c % d == 0])
            g.smooth(op, v, 8, 5, inputs=[g.floats(c), g.floats(c)], terms=n, epsilon=0.1, num_groups=groups)
        case "BatchNormalization":
            more = [g.floats(c), g.floats(c), g.floats(c), g.floats(c, low=0.5, high=2.0)]
            g.smooth(op, v, 2, 5, inputs=more, terms=4, epsilon=0.1)
        case "LRN":
            g.smooth(op, v, 2, 1.1, terms=8, size=g.rng.choice([1, 3]), bias=1.0, alpha=0.1)
        case "LpNormalization":
            away = g.add("Add", [v, g.weight(np.float32(2))], v.shape, v, bound=v.bound + 2, error=v.error + F32)
            g.smooth(op, away, 2, 1, terms=4 + v.shape[-1][0], axis=-1, p=g.rng.choice([1, 2]))
        case _:
            raise Unfit


@step(2)
def resize(g: Graph) -> None:
    v = g.ranked(4)
    scales = [1.0, 1.0, *[g.rng.choice([2.0, 1.0, 0.5]) for _ in range(2)]]
    out = tuple([tuple([int(n * s) for n in d]) for d, s in zip(v.shape, scales, strict=True)])
    if min(min(d) for d in out) < 1:
        raise Unfit
    mode = g.rng.choice(["nearest", "linear", "cubic"])
    where = "asymmetric" if mode == "nearest" else g.rng.choice(["half_pixel", "asymmetric"])
    same = {"error": v.error, "bound": v.bound} if mode == "nearest" else {
        "error": 3 * v.error + 20 * F32 * v.bound, "bound": 2.2 * v.bound, "fraction": 0}
    g.add("Resize", [v, "", g.weight(np.array(scales, np.float32))], out, v, mode=mode,
          coordinate_transformation_mode=where, **({"nearest_mode": "floor"} if mode == "nearest" else {}), **same)


@step()
def blocks(g: Graph) -> None:
    v = g.ranked(4)
    n, c, h, w = v.shape
    if is_number(c) and c[0] % 4 == 0 and g.rng.random() < 0.6:
        out = (n, g.dim(c[0] // 4), tuple([2 * x for x in h]), tuple([2 * x for x in w]))
        g.add("DepthToSpace", [v], out, v, blocksize=2, mode=g.rng.choice(["DCR", "CRD"]))
    elif all(x % 2 == 0 for x in (*h, *w)):
        out = (n, tuple([4 * x for x in c]), tuple([x // 2 for x in h]), tuple([x // 2 for x in w]))
        g.add("SpaceToDepth", [v], out, v, blocksize=2)
    else:
        raise Unfit


@step()
def grid(g: Graph) -> None:
    """Places between pixels: linear, so continuous in them."""
    v = g.ranked(4)
    if not is_number(v.shape[0]):
        raise Unfit
    n = v.shape[0][0]
    size = max(max(d) for d in v.shape[2:])
    g.add("GridSample", [v, g.floats(n, 3, 2, 2, low=-1.1, high=1.1)], (*v.shape[:2], *g.dims(3, 2)), v, fraction=0,
          error=v.error + (8 + 4 * size) * F32 * v.bound, padding_mode=g.rng.choice(["zeros", "border"]), align_corners=1,
          mode="linear" if g.opset >= 20 else "bilinear")


@step()
def recurrent(g: Graph) -> None:
    v = g.squashed(g.ranked(3))
    if not is_number(v.shape[2]):
        raise Unfit
    (time, batch), n, hidden = v.shape[:2], v.shape[2][0], g.rng.choice([1, 4])
    op, ways = g.rng.choice(["LSTM", "GRU", "RNN"]), g.rng.choice([1, 2])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    more = {"linear_before_reset": g.rng.randrange(2)} if op == "GRU" else {}
    outs = g.node(op, [v, g.floats(ways, gates * hidden, n, low=-0.3, high=0.3),
                       g.floats(ways, gates * hidden, hidden, low=-0.3, high=0.3), g.floats(ways, 2 * gates * hidden)],
                  3 if op == "LSTM" else 2, hidden_size=hidden, direction=["forward", "bidirectional"][ways - 1], **more)
    steps = max(time)
    error = 2 * steps * n * v.error + 20 * steps * (n + hidden) * F32
    g.made(outs[0], (time, g.dim(ways), batch, g.dim(hidden)), "float32", 1, error)
    g.made(outs[1], (g.dim(ways), batch, g.dim(hidden)), "float32", 1, error)
    if op == "LSTM":
        g.made(outs[2], (g.dim(ways), batch, g.dim(hidden)), "float32", steps, error)


@step()
def attention(g: Graph) -> None:
    """softmax(a aᵀ) b, as models write it."""
    a = g.squashed(g.ranked(3))
    found = [w for w in g.values if w.type == "float32" and w.rank == 3 and w.shape[-2] == a.shape[-2]
             and broadcast(w.shape[:1], a.shape[:1]) is not None]
    if not found:
        raise Unfit
    b, n, k = g.rng.choice(found), max(a.shape[-2]), max(a.shape[-1])
    s = g.add("MatMul", [a, g.node("Transpose", [a], perm=[0, 2, 1])[0]], (*a.shape[:-1], a.shape[-2]), a, bound=k,
              error=product_error(a, 1, a.error, k), fraction=0)
    p = g.smooth("Softmax", s, 2, 1, terms=4 + n, axis=-1)
    batch = broadcast(a.shape[:1], b.shape[:1])
    assert batch is not None
    g.add("MatMul", [p, b], (*batch, a.shape[1], b.shape[2]), b, bound=b.bound,
          error=b.error + n * p.error * b.bound + n * F32 * b.bound, fraction=0)

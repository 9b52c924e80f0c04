"""Small ONNX models for end-to-end tests, in ONNX's text form, with seeded weights."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

HEAD = '<ir_version: 8, opset_import: ["" : {}]>\n'


def weight(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray[Any, Any]:
    """Normal numbers that keep the size of what they are multiplied with."""
    fan = int(np.prod(shape[1:])) or 1
    rng = np.random.default_rng([seed, *shape])
    return (scale * rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def model(text: str, opset: int = 17, **weights: Any) -> onnx.ModelProto:
    """The model of a graph's text; `weights` become initializers."""
    m = parser.parse_model(HEAD.format(opset) + text)
    for name, value in weights.items():
        m.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return m


def inputs(m: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Normal floats, integers below 4, true."""
    rng = np.random.default_rng(seed)
    out = {}
    for i in m.graph.input:
        t = i.type.tensor_type
        shape = [d.dim_value for d in t.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(t.elem_type)
        if kind == np.bool_:
            out[i.name] = np.ones(shape, kind)
        elif np.issubdtype(kind, np.integer):
            out[i.name] = rng.integers(0, 4, shape).astype(kind)
        else:
            out[i.name] = rng.standard_normal(shape).astype(kind)
    return out


def reference(m: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    """What ONNX Runtime gives."""
    import onnxruntime as ort
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return list(ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds))


def mlp() -> onnx.ModelProto:
    return model("""mlp (float[4,16] x) => (float[4,10] y) {
        a = MatMul(x, w1)
        b = Add(a, b1)
        c = Relu(b)
        d = Gemm(c, w2, b2)
        y = Softmax<axis = 1>(d)
    }""", w1=weight(16, 32), b1=weight(32), w2=weight(32, 10), b2=weight(10))


def convnet() -> onnx.ModelProto:
    """Convolution, BatchNorm, residual, pooling, concatenation, resizing, and a dense end."""
    return model("""convnet (float[1,3,20,20] x) => (float[1,10] y) {
        a = Conv<pads = [1,1,1,1]>(x, w1)
        b = BatchNormalization(a, gamma, beta, mean, var)
        c = Relu(b)
        p = MaxPool<kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]>(c)
        d = Conv<pads = [1,1,1,1]>(p, w2, bias2)
        e = Add(d, p)
        f = Relu(e)
        g = Conv<group = 16, pads = [1,1,1,1], strides = [2,2]>(f, w3)
        h = Sigmoid(g)
        r = Resize<mode = "nearest">(h, , scales)
        k = Concat<axis = 1>(r, f)
        q = Conv(k, w4)
        s = LeakyRelu<alpha = 0.1>(q)
        t = GlobalAveragePool(s)
        u = Flatten(t)
        y = Gemm<transB = 1>(u, w5)
    }""", w1=weight(16, 3, 3, 3), gamma=1 + weight(16, seed=1) / 4, beta=weight(16), mean=weight(16, seed=2),
        var=np.abs(weight(16, seed=3)) + 1, w2=weight(16, 16, 3, 3), bias2=weight(16, seed=4), w3=weight(16, 1, 3, 3),
        scales=np.array([1, 1, 2, 2], np.float32), w4=weight(24, 32, 1, 1), w5=weight(10, 24))


def attention() -> onnx.ModelProto:
    """One block of a transformer: embedding, heads, softmax, skip, LayerNorm, GELU."""
    return model("""attention (int64[1,12] ids) => (float[1,12,32] y) {
        x = Gather(table, ids)
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        q4 = Reshape(q, heads)
        k4 = Reshape(k, heads)
        v4 = Reshape(v, heads)
        qt = Transpose<perm = [0,2,1,3]>(q4)
        kt = Transpose<perm = [0,2,3,1]>(k4)
        vt = Transpose<perm = [0,2,1,3]>(v4)
        s = MatMul(qt, kt)
        n = Mul(s, factor)
        p = Softmax<axis = -1>(n)
        o = MatMul(p, vt)
        ot = Transpose<perm = [0,2,1,3]>(o)
        oc = Reshape(ot, together)
        d = MatMul(oc, wo)
        z = Add(d, x)
        l = LayerNormalization(z, gamma, beta)
        m = MatMul(l, w1)
        root = Mul(m, half)
        e = Erf(root)
        one_e = Add(e, one)
        h = Mul(m, one_e)
        g = Mul(h, point5)
        f = MatMul(g, w2)
        y = Add(f, l)
    }""", table=weight(4, 32, scale=4), wq=weight(32, 32, seed=1), wk=weight(32, 32, seed=2), wv=weight(32, 32, seed=3),
        wo=weight(32, 32, seed=4), w1=weight(32, 64), w2=weight(64, 32), gamma=1 + weight(32), beta=weight(32, seed=5),
        heads=np.array([1, 12, 4, 8]), together=np.array([1, 12, 32]), factor=np.float32(8 ** -0.5),
        half=np.float32(0.5 ** 0.5), one=np.float32(1), point5=np.float32(0.5))


def branches() -> onnx.ModelProto:
    """An If that depends on the data; a branch uses outer values, the other gives one back as it is."""
    return model("""branches (float[8,8] x) => (float[8,8] y, float[8] z) {
        total = ReduceSum<keepdims = 0>(x)
        zero = Constant<value_float = 0.0>()
        positive = Greater(total, zero)
        doubled = Mul(x, two)
        row = ReduceMax<axes = [1], keepdims = 0>(x)
        a, z = If (positive) <
            then_branch = yes () => (float[8,8] ya, float[8] yb) {
                t = MatMul(x, w)
                ya = Relu(t)
                yb = Neg(row)
            },
            else_branch = no () => (float[8,8] na, float[8] nb) {
                na = Identity(doubled)
                nb = Identity(bias)
            }
        >
        y = Add(a, x)
    }""", two=np.float32(2), w=weight(8, 8), bias=weight(8))


def while_loop() -> onnx.ModelProto:
    """Runs until the sum of squares passes 1000: each turn multiplies by a matrix; the condition is computed in the body."""
    return model("""while_loop (float[4,4] x) => (float[4,4] y, float turns, int64 last) {
        start = Constant<value_float = 0.0>()
        none = Constant<value_int = -1>()
        go = Cast<to = 9>(many)
        y, turns, last = Loop (many, go, x, start, none) <
            body = turn (int64 i, bool c, float[4,4] s, float n, int64 k) => (bool more, float[4,4] t, float m, int64 now) {
                u = MatMul(s, w)
                t = Add(u, s)
                m = Add(n, one)
                now = Identity(i)
                sq = Mul(t, t)
                total = ReduceSum<keepdims = 0>(sq)
                more = Less(total, limit)
            }
        >
    }""", many=np.int64(100), w=np.eye(4, dtype=np.float32) / 2 + weight(4, 4) / 8, one=np.float32(1),
        limit=np.float32(1000))


def swaps() -> onnx.ModelProto:
    """Carried values change places: Fibonacci vectors, a pure swap, a rotation of three, and the counter carried along."""
    return model("""swaps (float[6] x, int64 n) => (float[6] a, float[6] b, float[6] p, float[6] q, float[6] r, float[6] s,
                                                    float[6] t, int64 k) {
        go = Constant<value_int = 1>()
        c = Cast<to = 9>(go)
        two = Add(x, x)
        three = Add(two, x)
        a, b, p, q, r, s, t, k = Loop (n, c, x, two, x, two, x, two, three, go) <
            body = turn (int64 i, bool d, float[6] a0, float[6] b0, float[6] p0, float[6] q0, float[6] r0, float[6] s0,
                         float[6] t0, int64 k0)
                => (bool d1, float[6] a1, float[6] b1, float[6] p1, float[6] q1, float[6] r1, float[6] s1, float[6] t1,
                    int64 k1) {
                d1 = Identity(d)
                a1 = Identity(b0)
                b1 = Add(a0, b0)
                p1 = Identity(q0)
                q1 = Identity(p0)
                r1 = Identity(s0)
                s1 = Identity(t0)
                t1 = Identity(r0)
                k1 = Identity(i)
            }
        >
    }""")


def nested_loops() -> onnx.ModelProto:
    """A loop in a loop, with an If inside, over values of all the graphs around; rows are collected."""
    return model("""nested (float[5] x) => (float[5] y, float[3,5] rows) {
        c = Cast<to = 9>(three)
        scaled = Mul(x, half)
        y, rows = Loop (three, c, x) <
            body = outer (int64 i, bool c0, float[5] s) => (bool c1, float[5] s1, float[5] row) {
                c1 = Identity(c0)
                base = Add(s, scaled)
                s1 = Loop (two, c, base) <
                    body = inner (int64 j, bool d0, float[5] u) => (bool d1, float[5] u1) {
                        d1 = Identity(d0)
                        both = Add(i, j)
                        odd = Mod(both, two)
                        is = Cast<to = 9>(odd)
                        v = If (is) <
                            then_branch = yes () => (float[5] ya) { ya = Sub(u, base) },
                            else_branch = no () => (float[5] na) { na = Mul(u, x) }
                        >
                        u1 = Add(v, s)
                    }
                >
                row = Neg(s1)
            }
        >
    }""", three=np.int64(3), two=np.int64(2), half=np.float32(0.5))


def stacked() -> onnx.ModelProto:
    """Rows of a loop collected straight into outputs, one of them under another shape."""
    return model("""stacked (float[2,3] x) => (float[1,4,3,2] rows, int64[4] turns) {
        go = Cast<to = 9>(four)
        last, found, turns = Loop (four, go, x) <
            body = turn (int64 i, bool c, float[2,3] s) => (bool more, float[2,3] t, float[2,3] row, int64 now) {
                more = Identity(c)
                t = Add(s, x)
                row = Neg(s)
                now = Mul(i, i)
            }
        >
        rows = Reshape(found, shape)
    }""", four=np.int64(4), shape=np.array([1, 4, 3, 2]))


def ends() -> onnx.ModelProto:
    """Outputs of every kind: an intermediate, the same under another shape, an input, a constant, two names of one value."""
    return model("""ends (float[2,6] x) => (float[2,6] mid, float[3,4] flat, float[2,6] same, float[2,6] x2, float[3] c,
                                            float[12] xr, float[2,6] last, float[4,3] again) {
        mid = Add(x, x)
        flat = Reshape(mid, s34)
        same = Identity(mid)
        x2 = Identity(x)
        c = Identity(k)
        xr = Reshape(x, s12)
        last = Mul(mid, x)
        again = Reshape(mid, s43)
    }""", k=np.array([1, 2, 3], np.float32), s34=np.array([3, 4]), s12=np.array([12]), s43=np.array([4, 3]))


def integers() -> onnx.ModelProto:
    """int64 through and through, a product of matrices included."""
    return model("""integers (int64[5,7] x, int64[7,3] w, int32[5] small) => (int64[5,3] y, int64[5] best, int32[5] z) {
        a = MatMul(x, w)
        y = Add(a, big)
        best = ArgMax<axis = 1, keepdims = 0>(x)
        z = Mul(small, small)
    }""", big=np.int64(1 << 40))


ALL = {f.__name__: f for f in (mlp, convnet, attention, branches, while_loop, swaps, nested_loops, stacked,
                                   ends, integers)}

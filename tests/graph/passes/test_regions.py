"""Passes inside regions: the bodies of If and Loop are rewritten too, and see the values around them."""
from __future__ import annotations

from tests.graph.passes.passcheck import Net, names, same
from tilewright.graph.pipeline import graph_pipeline
from tilewright.target.presets import get_target

TARGET = get_target("x86-64-v4")


def test_a_loop_with_a_convolution_inside() -> None:
    b = Net()
    image = b.conv(b.x(1, 16, 5, 5), 16, 3)
    body = Net()
    body.x(type="i64")
    body.x(type="bool")
    state = body.x(1, 16, 5, 5)
    y = body.op("mul", body.op("relu", body.conv(body.op("add", state, image), 16, 3)), body.n(1))
    region = body.finish([body.constant(True), y])
    trip = b.constant(3)
    out = b.add("loop", [trip, b.constant(True), image], regions=[region])
    g = b.finish([out, b.op("exp", image)])
    after = same(g, graph_pipeline(TARGET, "default").run(g), atol=1e-4)
    (loop,) = [op for op in after.operations if op.op == "loop"]
    assert "mul" not in names(loop.regions[0]) and "pad" in names(loop.regions[0])


def test_both_branches_of_an_if() -> None:
    b = Net()
    x, c = b.x(2, 3), b.x(type="bool")
    branches = []
    for number in (1.0, 2.0):
        inner = Net()
        branches.append(inner.finish([inner.op("mul", inner.op("identity", x), inner.n(number))]))
    g = b.finish([b.op("relu", b.add("if_", [c], regions=branches))])
    after = same(g, graph_pipeline(TARGET, "default").run(g))
    (op,) = [o for o in after.operations if o.op == "if_"]
    assert [names(r) for r in op.regions] == [[], ["mul"]]

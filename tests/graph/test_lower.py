"""From groups to programs: parameters by position, and the program's own symbols for the graph's."""
from typing import Any

import numpy as np

from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import tensor_type
from tilewright.graph.lower import GroupProgram, group_program
from tilewright.graph.passes.fuse import fuse
from tilewright.loop.ir import Span, Var
from tilewright.loop.printer import print_program


def rows_times_weight(rows: Any) -> GroupProgram:
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (*rows, 64)))
    (group,) = fuse(b.finish([b.add("matmul", [x, b.constant(np.ones((64, 32), np.float32))])]))
    return group_program(group, "k")


def test_sizes_are_parameters_after_the_buffers_in_order_of_first_use() -> None:
    batch, seq = Var("batch", span=Span(1, 8)), Var("seq", span=Span(1, 512, hint=128))
    made = rows_times_weight((batch, seq))
    assert made.sizes == [batch, seq]
    assert [p.span for p in made.program.params if isinstance(p, Var)] == [batch.span, seq.span]
    assert [p.name for p in made.program.params] == ["in0", "w0", "matmul", "s0", "s1"]


def test_equal_groups_of_other_symbols_are_one_program() -> None:
    a, b = Var("a", span=Span(1, 8)), Var("b", span=Span(1, 8))
    texts = [print_program(rows_times_weight((v,)).program, canonical=True) for v in (a, b)]
    assert texts[0] == texts[1]


def test_static_groups_have_no_sizes() -> None:
    assert rows_times_weight((3,)).sizes == []

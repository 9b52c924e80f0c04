"""Recurrences: recipes against NumPy, compiled code of the rule against NumPy, schedules of a step."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.opcheck import build, check, floats
from tilewright.core.errors import UserError
from tilewright.graph.lower import group_program
from tilewright.graph.passes.fuse import fuse
from tilewright.loop import interpret
from tilewright.target.presets import get_target
from tilewright.tensor.rules.dispatch import schedule_program

LENS = np.array([4, 0, 2], np.int32)


def operands(op: str, steps: int = 4, batch: int = 3, directions: int = 2, units: int = 5, extra: str = "") -> list[Any]:
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[op]
    x = floats(steps, batch, directions, gates, units)
    states = [floats(directions, batch, units, seed=k) if "start" in extra else None for k in range(1 + (op == "lstm"))]
    out = [x, floats(directions, 2 if "before" in extra else gates, units, units, seed=7, low=-0.5, high=0.5), *states]
    if op == "gru":
        out += [floats(directions, 1, units, units, seed=8) if "before" in extra else None,
                floats(directions, units, seed=9) if "bias" in extra else None]
    if op == "lstm":
        out.append(floats(directions, 3, units, seed=9) if "peep" in extra else None)
    return [*out, LENS[:batch] if "lens" in extra else None]


ACTIVATIONS = {"rnn": "tanh", "gru": "sigmoid tanh", "lstm": "sigmoid tanh tanh"}
CASES = [("rnn", ""), ("rnn", "start lens"), ("gru", "start"), ("gru", "before start lens"), ("gru", "bias"), ("lstm", ""),
         ("lstm", "start peep lens")]


@pytest.mark.parametrize("op, extra", CASES)
@pytest.mark.parametrize("directions", [1, 2])
def test_recipes(op: str, extra: str, directions: int) -> None:
    check(op, operands(op, directions=directions, extra=extra), {"activations": ACTIVATIONS[op]})


def test_other_activations_and_clip() -> None:
    for names, alpha, beta in (("affine hard_sigmoid elu", (0.5, 0.2, 0.3), (0.1, 0.5, 0.0)),
                               ("leaky_relu thresholded_relu relu", (0.1, 0.3, 0.0), (0.0, 0.0, 0.0)),
                               ("softsign scaled_tanh softplus", (0.0, 0.7, 0.0), (0.0, 0.4, 0.0))):
        check("lstm", operands("lstm", units=3), {"activations": names, "alpha": alpha, "beta": beta, "clip": 0.4})
    check("lstm", operands("lstm", units=3), {"activations": ACTIVATIONS["lstm"], "input_forget": True})


def test_wrong_operands() -> None:
    x, r, *rest = operands("lstm")
    for arrays, attrs, code in (([x, r[:, :3], *rest], {}, "shape-mismatch"),
                                ([x[0], r, *rest], {}, "rank-mismatch"),
                                ([x, r, *rest], {"activations": "tanh"}, "attribute-invalid"),
                                ([x, r, floats(2, 3, 4), *rest[1:]], {}, "shape-mismatch")):
        with pytest.raises(UserError) as fault:
            build("lstm", arrays, {"activations": ACTIVATIONS["lstm"], **attrs})
        assert fault.value.code == code


@pytest.mark.parametrize("op, extra", [("rnn", "start"), ("gru", "before start"), ("gru", "bias lens"),
                                       ("lstm", "start peep")])
@pytest.mark.parametrize("batch, directions, units", [(1, 1, 33), (3, 2, 16)])
def test_the_rule_computes_the_same(op: str, extra: str, batch: int, directions: int, units: int) -> None:
    """Scheduled programs, run scalar by scalar, against the unscheduled ones."""
    arrays = operands(op, 3, batch, directions, units, extra)
    graph = build(op, arrays, {"activations": ACTIVATIONS[op]})
    for name in ("x86-64-v3", "x86-64-v4"):
        (group,) = fuse(graph)
        made = group_program(group, "k")
        sch = schedule_program(made.program, get_target(name))
        assert not sch.fallback
        given = [a for a in arrays if a is not None]
        wanted = [np.zeros([int(str(d)) for d in v.shape], np.float32) for v in made.outputs]
        interpret.run(made.program, [*given, *wanted])
        got = [np.zeros_like(w) for w in wanted]
        interpret.run(sch.program, [*given, *got])
        for g, w in zip(got, wanted, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6)

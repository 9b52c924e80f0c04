"""Operators of classical models: steps through trees, probabilities of classes from those of pairs."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.opcheck import build, check, floats, reference
from tilewright.core.errors import UserError
from tilewright.loop.ir import Var

N = Var("n")


def pairs(p: Any, seed: int | None = None) -> Any:
    """r[j, t] = p[j] / (p[j] + p[t]), and with a seed moved away from that."""
    p = np.asarray(p)
    r = p[:, None] / (p[:, None] + p[None])
    if seed is not None:
        noise = np.triu(np.random.default_rng(seed).uniform(-0.2, 0.2, r.shape), 1)
        r = np.clip(r + noise - noise.T, 1e-7, 1 - 1e-7)
    return r.astype(np.float32)


P = np.array([[0.5, 0.3, 0.1, 0.1], [0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]])


def test_pairs_that_agree_with_some_probabilities_give_these() -> None:
    (got,) = reference(build("couple", [np.stack([pairs(p) for p in P])]), [np.stack([pairs(p) for p in P])])
    np.testing.assert_allclose(got, P, atol=2e-3)  # it ends where no condition fails by 0.005 / 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_coupled_probabilities_are_a_minimum(seed: int) -> None:
    r = pairs(P[0], seed)
    (got,) = reference(build("couple", [r[None]]), [r[None]])
    p = got[0].astype(np.float64)
    q = -r * r.T
    np.fill_diagonal(q, [np.delete(r[:, t], t) @ np.delete(r[:, t], t) for t in range(4)])
    assert abs(p.sum() - 1) < 1e-5 and (p > 0).all()
    best = np.linalg.solve(np.block([[q, np.ones((4, 1))], [np.ones((1, 4)), np.zeros((1, 1))]]), [0, 0, 0, 0, 1])[:4]
    np.testing.assert_allclose(p, best, atol=5e-3)


def test_couple() -> None:
    check("couple", [np.stack([pairs(p, k) for k, p in enumerate(P)])], rtol=1e-5)
    check("couple", [np.stack([pairs(p, k) for k, p in enumerate(P)])], shapes={0: (N, 4, 4)}, rtol=1e-5)
    check("couple", [pairs([0.2, 0.8])[None]], rtol=1e-5)
    with pytest.raises(UserError, match="not of pairs"):
        build("couple", [floats(2, 3, 4)])


# ---- trees -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("optional", [(), ("low",), ("low", "missing"), ("missing",)])
def test_tree_step(real: Any, optional: tuple[str, ...]) -> None:
    r, whole = np.random.default_rng(1), np.int32 if real is np.float32 else np.int64
    nodes = 9
    high = r.uniform(-1, 1, nodes).astype(real)
    table = np.stack([r.integers(0, 3, nodes), high.view(whole), r.integers(0, nodes, nodes), r.integers(0, nodes, nodes)],
                     1).astype(whole)
    x = floats(5, 3, type=real)
    x[0, 0] = x[2, 1] = np.nan
    x[3, 2] = high[4]
    node = r.integers(0, nodes, (5, 6)).astype(whole)
    extra = [high - 1 if "low" in optional else None, r.random(nodes) < 0.5 if "missing" in optional else None]
    check("tree_step", [x, node, table, *extra])
    check("tree_step", [x, node, table, *extra], shapes={0: (N, 3), 1: (N, 6)})
    with pytest.raises(UserError, match="4 numbers"):
        build("tree_step", [x, node, table[:, :3].copy(), *extra])

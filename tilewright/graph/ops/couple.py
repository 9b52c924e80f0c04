# mypy: disable-error-code="name-defined"
# ruff: noqa: F821, UP037 (sizes are names in quotes)
"""couple: probabilities of classes from those of each pair of them, as support vector machines have.

After Wu, Lin and Weng, "Probability Estimates for Multi-class Classification by Pairwise Coupling" (2004), second method:
the p of sum 1 that minimizes the sum over pairs of (r[j, t] p[t] - r[t, j] p[j])², by their algorithm 2. Like LIBSVM and
ONNX Runtime it ends for each row when no condition fails by 0.005 / k, or after 100 rounds: answers are as exact as that.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, no_type_check

import numpy as np

from tilewright.core.dtype import f32 as real
from tilewright.graph.infer import expect, expect_dtype, expect_rank, operands, same
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.registry import Array, OpRecord
from tilewright.tensor.script import Kernel, f32, kernel

ROUNDS = 100
TOLERANCE = 0.005


@no_type_check
def coupled(r: f32["rows", "k", "k"], p: f32["rows", "k"]):
    for i in range(rows):
        diagonal = local(f32, k)
        gradient = local(f32, k)
        state = local(f32, 4)  # p Q p, the largest error, the step, whether this row goes on
        state[3] = 1.0
        for t in range(k):
            p[i, t] = 1.0 / f32(k)
            diagonal[t] = 0.0
            for j in range(k):
                diagonal[t] += 0.0 if j == t else r[i, j, t] * r[i, j, t]
        for _turn in range(ROUNDS):
            if state[3] > 0.0:
                state[0] = 0.0
                for t in range(k):
                    gradient[t] = 0.0
                    for j in range(k):
                        gradient[t] += (diagonal[t] if j == t else -r[i, j, t] * r[i, t, j]) * p[i, j]
                    state[0] += p[i, t] * gradient[t]
                state[1] = 0.0
                for t in range(k):
                    state[1] = max(state[1], abs(gradient[t] - state[0]))
                state[3] = 0.0 if state[1] < TOLERANCE / f32(k) else 1.0
            if state[3] > 0.0:
                for t in range(k):
                    state[2] = (state[0] - gradient[t]) / diagonal[t]
                    state[0] = ((state[0] + state[2] * (state[2] * diagonal[t] + 2.0 * gradient[t]))
                                / (1.0 + state[2]) / (1.0 + state[2]))
                    p[i, t] += state[2]
                    for j in range(k):
                        gradient[j] = ((gradient[j] + state[2] * (diagonal[t] if j == t else -r[i, j, t] * r[i, t, j]))
                                       / (1.0 + state[2]))
                        p[i, j] = p[i, j] / (1.0 + state[2])


@functools.cache
def _kernel() -> Kernel:
    """`coupled`, parsed when a model needs it."""
    return kernel(coupled)


def _infer(op: Operation) -> Sequence[TensorType]:
    (r,) = operands(op, 1)
    expect_rank(op, r, 3)
    expect_dtype(op, r, r.dtype is real, "f32")
    expect(same(r.shape[1], r.shape[2]) is not False, "shape-mismatch", lambda: f"couple: {r.type} is not of pairs")
    return [TensorType(real, r.shape[:2])]


def _couple(attrs: dict[str, Any], r: Array) -> Array:
    rows, k = r.shape[:2]
    p = np.full((rows, k), 1 / max(k, 1), np.float32)
    q = -r * r.transpose(0, 2, 1)
    for t in range(k):
        q[:, t, t] = (np.delete(r[:, :, t], t, 1) ** 2).sum(1)
    for row in range(rows):
        for _ in range(ROUNDS):
            gradient = q[row] @ p[row]
            total = p[row] @ gradient
            if np.abs(gradient - total).max(initial=0) < TOLERANCE / k:
                break
            for t in range(k):
                step = (total - gradient[t]) / q[row, t, t]
                total = (total + step * (step * q[row, t, t] + 2 * gradient[t])) / (1 + step) ** 2
                gradient = (gradient + step * q[row, t]) / (1 + step)
                p[row, t] += step
                p[row] /= 1 + step
    return p


RECORDS = (
    OpRecord("couple", "opaque", _infer, _couple, lambda op, r: _kernel()(r),
             doc="Of each row of r [N, k, k], where r[j, t] is the probability of class j if it is j or t, the "
                 "probabilities [N, k] of the classes (Wu, Lin and Weng 2004)."),
)

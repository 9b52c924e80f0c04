"""Tree ensembles of ai.onnx.ml as tables of nodes and steps through them (`graph/ops/trees.py`).

Each node is an interval of one feature that leads to `yes`: x <= v is [-inf, v], x < v is [-inf, the number before v], an
unequal swaps its branches, and membership in a set is a chain of equals. A leaf leads to itself.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import boolean, f32, f64, i32, i64
from tilewright.frontend.onnx.ops_ml import ML, as_labels, both_classes, class_labels, labels_of, transformed
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.ir import Value
from tilewright.loop.ir import as_int

Array = np.ndarray[Any, Any]

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")


class Forest:
    """The table of nodes; `weights` holds (target, weight) of leaves by their row."""

    def __init__(self, c: Context, real: Any) -> None:
        self.c, self.real = c, real
        self.feature: list[int] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.missing: list[bool] = []
        self.yes: list[int] = []
        self.no: list[int] = []
        self.weights: list[tuple[int, int, float]] = []
        self.roots: list[int] = []

    def leaf(self) -> int:
        """A new row that leads to itself."""
        row = len(self.feature)
        self.feature.append(0)
        self.low.append(-np.inf)
        self.high.append(np.inf)
        self.missing.append(False)
        self.yes.append(row)
        self.no.append(row)
        return row

    def branch(self, row: int, mode: str, feature: int, value: float, missing: bool, yes: int, no: int) -> None:
        """Make a row a test. Where a feature is NaN, `missing` says whether it leads to `yes`."""
        v, inf = self.real(value), self.real(np.inf)
        swapped = mode == "BRANCH_NEQ"
        intervals = {"BRANCH_LEQ": (-inf, v), "BRANCH_LT": (-inf, np.nextafter(v, -inf)), "BRANCH_GTE": (v, inf),
                     "BRANCH_GT": (np.nextafter(v, inf), inf), "BRANCH_EQ": (v, v), "BRANCH_NEQ": (v, v)}
        if mode not in intervals:
            raise self.c.error("onnx-unsupported-variant", f"{self.c.op}: the node mode {mode!r} is not supported")
        self.low[row], self.high[row] = intervals[mode]
        self.feature[row], self.missing[row] = feature, missing and not swapped  # NaN is unequal to all
        self.yes[row], self.no[row] = (no, yes) if swapped else (yes, no)

    def depth(self) -> int:
        """Steps from the roots to the last leaf. An error if nodes lead in a circle."""
        level, steps = np.unique(self.roots), 0
        yes, no = np.array(self.yes), np.array(self.no)
        while True:
            inner = level[(yes[level] != level) | (no[level] != level)]
            if not inner.size:
                return steps
            steps += 1
            if steps > len(self.feature):
                raise self.c.error("onnx-invalid-graph", f"{self.c.op}: the nodes of a tree lead in a circle")
            level = np.unique(np.concatenate([yes[inner], no[inner]]))

    def check(self) -> None:
        n, features = len(self.feature), as_int(self.c.x().shape[-1])
        places = [*self.yes, *self.no, *self.roots]
        wrong = not places or min(places) < 0 or max(places) >= n
        if wrong or min(self.feature) < 0 or features is not None and max(self.feature) >= features:
            raise self.c.error("onnx-invalid-graph", f"{self.c.op}: a node that is not there, or a feature that "
                               f"{self.c.x().type} does not have")

    def scores(self, targets: int, aggregate: str) -> Value:
        """[N, targets]: the leaves' weights over all trees."""
        c = self.c
        self.check()
        x = c.x()
        x = c.b.unsqueeze(x, [0]) if x.rank == 1 else x
        t = f64 if self.real is np.float64 else f32
        x, trees = c.cast(x, t), len(self.roots)
        whole = i64 if t is f64 else i32  # as wide as the features: a bound is one of the numbers of a node
        node = c.add("expand", c.const(np.array(self.roots)[None], whole), shape=[x.shape[0], trees])
        bits = np.array(self.high, self.real).view(whole.numpy())
        table: list[Value | None] = [c.const(np.stack([self.feature, bits, self.yes, self.no], 1), whole), None, None]
        if any(low > -np.inf for low in self.low):
            table[1] = c.const(self.low, t)
        if any(self.missing):
            table[2] = c.const(self.missing, boolean)
        for _ in range(self.depth()):
            node = c.add("tree_step", x, node, *table)
        most = np.finfo(self.real).max
        table_of_weights = np.full((len(self.feature), targets), {"MIN": most, "MAX": -most}.get(aggregate, 0), self.real)
        for row, target, w in self.weights:
            if not 0 <= target < targets:
                raise c.error("onnx-invalid-graph", f"{c.op}: the target {target} of {targets}")
            if aggregate in ("MIN", "MAX"):
                table_of_weights[row, target] = w
            else:
                table_of_weights[row, target] += w
        found = c.add("gather", c.const(table_of_weights, t), node, axis=0)
        over = {"MIN": "reduce_min", "MAX": "reduce_max"}.get(aggregate, "reduce_sum")
        y = c.add(over, found, axes=(1,), keepdims=False)
        return c.add("div", y, c.const(trees, t)) if aggregate == "AVERAGE" else y


# ---- before version 5: nodes are named by tree and number ------------------------------------------------------------
def _numbers(c: Context, name: str) -> Sequence[Any]:
    """An attribute of floats, or the tensor of doubles that stands for it."""
    tensor = c.a(f"{name}_as_tensor")
    return c.tensor(tensor).reshape(-1).tolist() if tensor is not None else c.a(name) or ()


def _named(c: Context, kind: str) -> Forest:
    double = c.a("nodes_values_as_tensor") is not None and c.x().dtype is f64
    forest = Forest(c, np.float64 if double else np.float32)
    trees, ids, modes = c.a("nodes_treeids") or (), c.a("nodes_nodeids") or (), c.a("nodes_modes") or ()
    values, features = _numbers(c, "nodes_values"), c.a("nodes_featureids") or ()
    yes, no = c.a("nodes_truenodeids") or (), c.a("nodes_falsenodeids") or ()
    missing = c.a("nodes_missing_value_tracks_true") or (0,) * len(ids)
    if not len(trees) == len(ids) == len(modes) == len(values) == len(features) == len(yes) == len(no) == len(missing):
        raise c.error("onnx-invalid-graph", f"{c.op}: the attributes of the nodes have different lengths")
    row = {key: forest.leaf() for key in zip(trees, ids, strict=True)}
    for k, mode in enumerate(modes):
        if mode != "LEAF":
            forest.branch(row[trees[k], ids[k]], mode, features[k], values[k], bool(missing[k]), row[trees[k], yes[k]],
                          row[trees[k], no[k]])
    forest.roots = list({t: row[t, n] for t, n in reversed(list(zip(trees, ids, strict=True)))}.values())[::-1]
    for t, n, target, w in zip(c.a(f"{kind}_treeids") or (), c.a(f"{kind}_nodeids") or (), c.a(f"{kind}_ids") or (),
                               _numbers(c, f"{kind}_weights"), strict=True):
        forest.weights.append((row[t, n], target, w))
    return forest


@onnx_op("TreeEnsembleRegressor", domain=ML)
def tree_ensemble_regressor(c: Context) -> Result:
    forest, aggregate = _named(c, "target"), c.a("aggregate_function", "SUM")
    c.expect(aggregate in AGGREGATES, f"aggregate_function {aggregate!r}")
    y, base = forest.scores(c.a("n_targets", 1), aggregate), _numbers(c, "base_values")
    if base:
        y = c.add("add", y, c.const(base, y.dtype))
    return c.cast(transformed(c, y, c.a("post_transform", "NONE")), f32)


@onnx_op("TreeEnsembleClassifier", domain=ML)
def tree_ensemble_classifier(c: Context) -> Result:
    """Where all weights are for the first of two classes, its score stands for the second, as a probability if no weight is
    negative."""
    forest, texts, kind = _named(c, "class"), "classlabels_strings", c.a("post_transform", "NONE")
    labels = labels_of(c, "classlabels_int64s", texts)
    c.expect(labels is not None, "a model without labels")
    assert labels is not None
    base, targets = _numbers(c, "base_values"), {target for _, target, _ in forest.weights}
    if targets == {0} and len(labels) <= 2:
        s = forest.scores(1, "SUM")
        if base:
            s = c.add("add", s, c.const(base[0], s.dtype))
        positive = min(w for _, _, w in forest.weights) >= 0
        scores = both_classes(c, s, kind, positive)
        above = c.add("greater", c.b.squeeze(s, [1]), c.const(0.5 if positive else 0, s.dtype))
        first, second = labels if len(labels) == 2 else (0, labels[0])
        found = c.add("where", above, c.const(second, i64), c.const(first, i64))
        return as_labels(c, found, texts), c.cast(scores, f32)
    y = forest.scores(len(labels), "SUM")
    if base:
        y = c.add("add", y, c.const(base, y.dtype))
    winner = c.add("argmax", y, axis=1, keepdims=False)
    return class_labels(c, winner, labels, texts), c.cast(transformed(c, y, kind), f32)


# ---- version 5: rows that name rows ----------------------------------------------------------------------------------
@onnx_op("TreeEnsemble", since=5, domain=ML)
def tree_ensemble(c: Context) -> Result:
    x = c.x()
    real = np.float64 if x.dtype is f64 else np.float32
    forest = Forest(c, real)
    modes, splits = c.tensor(c.a("nodes_modes")).reshape(-1), c.tensor(c.a("nodes_splits")).reshape(-1).astype(real)
    features, weights = c.a("nodes_featureids"), c.tensor(c.a("leaf_weights")).reshape(-1)
    targets = c.a("leaf_targetids")
    missing = c.a("nodes_missing_value_tracks_true") or (0,) * len(modes)
    inner = [forest.leaf() for _ in modes]
    leaves = [forest.leaf() for _ in targets]
    forest.weights = [(row, t, float(w)) for row, t, w in zip(leaves, targets, weights, strict=True)]

    def place(k: int, leaf: int) -> int:
        return leaves[k] if leaf else inner[k]
    members = _sets(c)
    for k, mode in enumerate(modes.tolist()):
        ends = [place(c.a(f"nodes_{side}nodeids")[k], c.a(f"nodes_{side}leafs")[k]) for side in ("true", "false")]
        if MODES[mode] != "BRANCH_MEMBER":
            forest.branch(inner[k], MODES[mode], features[k], splits[k], bool(missing[k]), ends[0], ends[1])
            continue
        row, values = inner[k], members.pop(0)
        for j, v in enumerate(values):
            after = ends[1] if j == len(values) - 1 else forest.leaf()
            forest.branch(row, "BRANCH_EQ", features[k], v, bool(missing[k]), ends[0], after)
            row = after
    forest.roots = [inner[k] for k in c.a("tree_roots")]
    y = forest.scores(c.a("n_targets", 1), AGGREGATES[c.a("aggregate_function", 1)])
    return c.cast(transformed(c, y, TRANSFORMS[c.a("post_transform", 0)]), x.dtype)


def _sets(c: Context) -> list[list[float]]:
    """The sets of members, each of which NaN ends."""
    proto = c.a("membership_values")
    found: list[list[float]] = [[]]
    for v in c.tensor(proto).reshape(-1).tolist() if proto is not None else ():
        if v != v:
            found.append([])
        else:
            found[-1].append(v)
    return found

"""The numeric operators of ai.onnx.ml, compiled, beside ONNX Runtime."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.frontend.onnx.onnx_check import by_onnxruntime, model, same, value
from tilewright.frontend.onnx import backend

R = np.random.default_rng(11)
X = R.standard_normal((5, 4)).astype(np.float32)
ML = helper.make_opsetid("ai.onnx.ml", 3)


def one(op: str, arrays: list[Any], version: int = 3, outputs: int = 1, **attrs: Any) -> tuple[Any, dict[str, Any]]:
    feeds = {f"x{k}": np.asarray(a) for k, a in enumerate(arrays)}
    node = helper.make_node(op, list(feeds), [f"y{k}" for k in range(outputs)], domain="ai.onnx.ml", **attrs)
    infos = [value(k, v.shape, helper.np_dtype_to_tensor_dtype(v.dtype)) for k, v in feeds.items()]
    return model([node], infos, [f"y{k}" for k in range(outputs)], imports=[helper.make_opsetid("ai.onnx.ml", version)],
                 ir=10), feeds


def compare(m: Any, feeds: dict[str, Any]) -> None:
    same(backend.run_native(m, list(feeds.values())), by_onnxruntime(m, feeds), rtol=2e-4, atol=1e-5)


HOLES = X.copy()
HOLES[1, 2] = HOLES[3, 0] = np.nan
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("ArrayFeatureExtractor", [X, np.array([[2, 0, 3]])], {}), ("ArrayFeatureExtractor", [X[0], np.array([1])], {}),
    ("Binarizer", [X], {"threshold": 0.25}),
    ("Imputer", [HOLES], {"imputed_value_floats": [1.0, 2.0, 3.0, 4.0], "replaced_value_float": float("nan")}),
    ("Imputer", [np.array([[1, -1], [7, -1]])], {"imputed_value_int64s": [5], "replaced_value_int64": -1}),
    ("Scaler", [X], {"offset": [0.5] * 4, "scale": [1.0, 2.0, 3.0, 4.0]}),
    ("Scaler", [np.array([[1, 2], [3, 4]])], {"offset": [1.0], "scale": [0.5]}),
    *[("Normalizer", [np.concatenate([X, X * 0])], {"norm": norm}) for norm in ("L1", "L2")],
    ("Normalizer", [np.abs(X)], {"norm": "MAX"}),
    ("OneHotEncoder", [np.array([3, 1, 7, 3])], {"cats_int64s": [1, 3, 5], "zeros": 1}),
    ("OneHotEncoder", [np.array([["b", "a"], ["é", "b"]], object)], {"cats_strings": ["a", "b", "c"], "zeros": 1}),
    ("FeatureVectorizer", [X, X[:, :2].copy()], {"inputdimensions": [4, 2]}),
    ("LinearRegressor", [X], {"coefficients": R.standard_normal(8).tolist(), "intercepts": [0.5, -1.0], "targets": 2}),
    ("SVMRegressor", [X], {"coefficients": [0.5, -1.0, 0.25], "kernel_params": [0.3, 0.1, 3.0], "kernel_type": "RBF",
                           "n_supports": 3, "rho": [0.2], "support_vectors": R.standard_normal(12).tolist()}),
    ("SVMRegressor", [X], {"coefficients": [0.5, -1.0, 0.25], "kernel_params": [0.3, 0.1, 3.0], "kernel_type": "POLY",
                           "n_supports": 3, "rho": [0.2], "support_vectors": R.standard_normal(12).tolist()})]


@pytest.mark.parametrize("op, arrays, attrs", CASES, ids=[f"{c[0]}-{k}" for k, c in enumerate(CASES)])
def test_operator(op: str, arrays: list[Any], attrs: dict[str, Any]) -> None:
    compare(*one(op, arrays, **attrs))


@pytest.mark.parametrize("kind", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("rows", [1, 3])
def test_linear_classifiers(kind: str, rows: int) -> None:
    labels = [4, 9] if rows == 1 else [2, 5, 8]
    compare(*one("LinearClassifier", [X], outputs=2, coefficients=R.standard_normal(4 * rows).tolist(), post_transform=kind,
                 intercepts=R.standard_normal(rows).tolist(), classlabels_ints=labels))


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("proba", [False, True])
@pytest.mark.parametrize("kernel", ["LINEAR", "POLY", "RBF", "SIGMOID"])
def test_support_vector_classifiers(classes: int, proba: bool, kernel: str) -> None:
    counts = [2, 3, 2, 1, 4][:classes]
    n, pairs = sum(counts), classes * (classes - 1) // 2
    attrs: dict[str, Any] = {"prob_a": R.uniform(-2, -1, pairs).tolist(), "prob_b": R.uniform(-2, 2, pairs).tolist()}
    m, feeds = one("SVMClassifier", [X], outputs=2, kernel_type=kernel, kernel_params=[0.4, 0.5, 3.0],
                   coefficients=R.standard_normal(n * (classes - 1)).tolist(), rho=R.standard_normal(pairs).tolist(),
                   support_vectors=R.standard_normal(n * 4).tolist(), vectors_per_class=counts,
                   classlabels_ints=list(range(3, 3 + classes)), **(attrs if proba else {}))
    got, wanted = backend.run_native(m, [X]), by_onnxruntime(m, feeds)
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_allclose(got[1], wanted[1], atol=1e-5 if proba else 1e-4)


# ---- trees -----------------------------------------------------------------------------------------------------------
def forest(trees: int, depth: int, kind: str, targets: int, one_target: int | None = None, low: float = -1.0,
           modes: tuple[str, ...] = ("BRANCH_LEQ",)) -> dict[str, Any]:
    """Random trees, some of whose branches end early, as the attributes of the operators before version 5."""
    r = np.random.default_rng(trees * 100 + depth)
    nodes: dict[str, list[Any]] = {k: [] for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids",
                                                   "falsenodeids", "missing_value_tracks_true")}
    leaves: dict[str, list[Any]] = {k: [] for k in ("treeids", "nodeids", "ids", "weights")}

    def grow(tree: int, left: int, counter: list[int]) -> int:
        me = counter[0]
        counter[0] += 1
        leaf = left == 0 or (left < depth and r.random() < 0.2)
        at = len(nodes["nodeids"])
        for k, v in (("treeids", tree), ("nodeids", me), ("featureids", 0 if leaf else int(r.integers(4))),
                     ("values", 0.0 if leaf else float(np.float32(r.choice(X.ravel())))),
                     ("modes", "LEAF" if leaf else str(r.choice(modes))), ("truenodeids", 0), ("falsenodeids", 0),
                     ("missing_value_tracks_true", int(r.integers(2)))):
            nodes[k].append(v)
        if leaf:
            for t in range(targets) if one_target is None and kind == "class" else [one_target or 0]:
                for k, v in (("treeids", tree), ("nodeids", me), ("ids", t), ("weights", float(r.uniform(low, 1)))):
                    leaves[k].append(v)
        else:
            nodes["truenodeids"][at] = grow(tree, left - 1, counter)
            nodes["falsenodeids"][at] = grow(tree, left - 1, counter)
        return me
    for t in range(trees):
        grow(t, depth, [0])
    return {**{f"nodes_{k}": v for k, v in nodes.items()}, **{f"{kind}_{k}": v for k, v in leaves.items()}}


MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("modes", [MODES[:1], MODES])
def test_tree_regressors(aggregate: str, modes: tuple[str, ...]) -> None:
    attrs = forest(7, 4, "target", 1, modes=modes)
    rows = np.concatenate([X, HOLES])
    compare(*one("TreeEnsembleRegressor", [rows], n_targets=1, aggregate_function=aggregate, base_values=[0.5], **attrs))


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("modes", [MODES[:1], MODES])
def test_trees_in_which_missing_features_lead_to_no(modes: tuple[str, ...], real: Any) -> None:
    attrs = forest(7, 4, "target", 1, modes=modes)
    del attrs["nodes_missing_value_tracks_true"]
    if real is np.float64:
        for name in ("nodes_values", "target_weights"):
            attrs[f"{name}_as_tensor"] = numpy_helper.from_array(np.array(attrs.pop(name), real), name)
    rows = np.concatenate([X, HOLES, X * 0 + np.inf, X * 0 - np.inf]).astype(real)
    compare(*one("TreeEnsembleRegressor", [rows], n_targets=1, **attrs))


@pytest.mark.parametrize("kind", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_tree_classifiers(kind: str) -> None:
    attrs = forest(6, 3, "class", 3)
    compare(*one("TreeEnsembleClassifier", [X], outputs=2, classlabels_int64s=[1, 4, 6], post_transform=kind, **attrs))


@pytest.mark.parametrize("kind", ["NONE", "LOGISTIC"])
@pytest.mark.parametrize("low, target", [(-1.0, 0), (0.0, 0), (-1.0, 1)])
def test_tree_classifiers_of_two_classes(kind: str, low: float, target: int) -> None:
    attrs = forest(5, 3, "class", 1, one_target=target, low=low)
    compare(*one("TreeEnsembleClassifier", [X], outputs=2, classlabels_int64s=[0, 1], post_transform=kind, **attrs))


def test_tree_ensembles_of_version_5() -> None:
    """Unequal depths, a set of members, and a tree that is a leaf."""
    def tensor(name: str, v: Any, t: Any) -> Any:
        return numpy_helper.from_array(np.array(v, t), name)
    attrs = dict(nodes_featureids=[0, 2, 1, 0], nodes_splits=tensor("s", [0.1, 0, 0.2, 0], np.float32),
                 nodes_modes=tensor("m", [0, 6, 3, 0], np.uint8), nodes_truenodeids=[1, 0, 2, 4],
                 nodes_trueleafs=[0, 1, 1, 1],
                 nodes_falsenodeids=[2, 1, 3, 4], nodes_falseleafs=[0, 1, 1, 1], leaf_targetids=[0, 1, 0, 1, 0],
                 leaf_weights=tensor("w", [1.0, 2.0, 3.0, 4.0, 0.5], np.float32), tree_roots=[0, 3], n_targets=2,
                 membership_values=tensor("v", [X[0, 2], X[1, 2], np.nan], np.float32))
    m, feeds = one("TreeEnsemble", [X], version=5, **attrs)
    compare(m, feeds)


def test_labels_that_are_strings() -> None:
    texts = ["no", "perhaps", "yes"]
    for m, feeds in (one("TreeEnsembleClassifier", [X], outputs=2, classlabels_strings=texts, **forest(6, 3, "class", 3)),
                     one("LinearClassifier", [X], outputs=2, classlabels_strings=texts, intercepts=[0.1, 0.2, 0.3],
                         coefficients=R.standard_normal(12).tolist())):
        got, wanted = backend.run_native(m, [X]), by_onnxruntime(m, feeds)
        assert got[0].tolist() == wanted[0].tolist()
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-4, atol=1e-5)

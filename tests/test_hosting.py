"""Operators on the host: strings and image files inside compiled models; options, errors, and what `save` says."""
from __future__ import annotations

import io
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import tilewright
from tests.frontend.onnx.onnx_check import I64, by_reference, model, value
from tilewright.core.errors import UserError
from tilewright.frontend.onnx import table
from tilewright.graph.infer import operands
from tilewright.graph.registry import OPS, OpRecord
from tilewright.hosting import HostWarning

N = helper.make_node
TEXT = TensorProto.STRING
WORDS = np.array([["ab", ""], ["c", "ab"]], object)


def texts(name: str, *shape: int | str) -> Any:
    return value(name, shape, TEXT)


def compiled(m: Any, **options: Any) -> tilewright.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HostWarning)
        return tilewright.compile(m, **options)


def test_a_call_back_amid_compiled_code() -> None:
    """Strings are moved and compared by compiled code; only their joining calls back."""
    nodes = [N("Transpose", ["x"], ["t"], perm=[1, 0]), N("StringConcat", ["t", "x"], ["j"]),
             N("Equal", ["j", "want"], ["e"]), N("Cast", ["e"], ["n"], to=I64), N("Where", ["e", "x", "j"], ["w"])]
    m = model(nodes, [texts("x", 2, 2), texts("want", 1)], ["j", "n", "w"], opset=20)
    with pytest.warns(HostWarning, match=r"1 operators run on the host: StringConcat_1 \(string_concat\)"):
        made = tilewright.compile(m)
    assert [(n.where, n.op) for n in made.host_nodes] == [("StringConcat_1", "string_concat")]
    j, n, w = made(WORDS, np.array(["abab"]))
    assert j.tolist() == [["abab", "c"], ["c", "abab"]] and n.tolist() == [[1, 0], [0, 1]]
    assert w.tolist() == [["ab", "c"], ["c", "ab"]]


def test_fallback_error_names_all_at_once() -> None:
    m = model([N("StringConcat", ["x", "x"], ["a"]), N("RegexFullMatch", ["a"], ["b"], pattern="a.*")], [texts("x", 2)],
              ["b"], opset=20)
    with pytest.raises(UserError, match=r"(?s)2 operators run on the host.*StringConcat_0.*RegexFullMatch_1"):
        tilewright.compile(m, fallback="error")
    with pytest.raises(UserError, match="fallback-unknown"):
        tilewright.compile(m, fallback="maybe")


def test_save_refuses_by_name(tmp_path: Path) -> None:
    joined = compiled(model([N("StringConcat", ["x", "x"], ["y"])], [texts("x", 2)], ["y"], opset=20))
    with pytest.raises(UserError, match="save-host-call"):
        joined.save(tmp_path / "net.so")
    moved = compiled(model([N("Identity", ["x"], ["y"])], [texts("x", 2)], ["y"], opset=20))
    with pytest.raises(UserError, match="inputs or outputs of strings"):
        moved.save(tmp_path / "net.so")


@pytest.mark.parametrize("node, inputs", [
    (N("StringConcat", ["x", "z"], ["y"]), [WORDS, np.array(["ß"], object)]),
    (N("RegexFullMatch", ["x"], ["y"], pattern="[a-b]+"), [WORDS]),
    (N("StringSplit", ["x"], ["y", "n"]), [np.array(["a b  c", "", " d"], object)]),
    (N("StringSplit", ["x"], ["y", "n"], delimiter=",", maxsplit=1), [np.array([["a,b,c"], ["d"]], object)]),
    (N("StringNormalizer", ["x"], ["y"], case_change_action="UPPER", stopwords=["AB"]), [np.array(["ab", "d"], object)])])
def test_string_operators_as_the_reference_has_them(node: Any, inputs: list[Any]) -> None:
    feeds = dict(zip(["x", "z"], inputs, strict=False))
    m = model([node], [texts(k, *v.shape) for k, v in feeds.items()], list(node.output), opset=20)
    want = by_reference(m, feeds)
    for info, w in zip(m.graph.output, want, strict=True):
        info.CopyFrom(value(info.name, w.shape, TEXT if w.dtype.kind in "OU" else helper.np_dtype_to_tensor_dtype(w.dtype)))
    for got, w in zip(compiled(m).run(feeds), want, strict=True):
        assert got.tolist() == w.tolist()


def test_a_declared_shape_is_checked() -> None:
    m = model([N("StringSplit", ["x"], ["y", "n"])], [texts("x", 1)], ["y", "n"], opset=20)
    m.graph.output[0].CopyFrom(texts("y", 1, 2))
    made = compiled(m)
    assert made(np.array(["a b"]))[0].tolist() == [["a", "b"]]
    with pytest.raises(UserError, match="run-shape"):
        made(np.array(["a b c"]))


def test_sizes_that_the_host_decides() -> None:
    """Two calls, and compiled code before, between and after them."""
    nodes = [N("Transpose", ["x"], ["t"]), N("StringSplit", ["t"], ["p", "n"]), N("Transpose", ["p"], ["q"], perm=[2, 0, 1]),
             N("Cast", ["n"], ["f"], to=TensorProto.FLOAT), N("StringSplit", ["q"], ["again", "m"], delimiter="b")]
    m = model(nodes, [texts("x", 2, "k")], ["q", "f", "again"], opset=20)
    made = compiled(m)
    for given in (np.array([["a bb", "c"], ["", "d e f"]], object), np.array([["x"], ["y b"]], object)):
        want = by_reference(m, {"x": given})
        for got, w in zip(made(given), want, strict=True):
            assert got.shape == w.shape and got.tolist() == w.tolist()


def test_numbers_and_text() -> None:
    x = np.array([1.5, -np.inf, 0.1], np.float32)
    m = model([N("Cast", ["x"], ["s"], to=TEXT), N("Cast", ["s"], ["y"], to=TensorProto.DOUBLE)], [value("x", [3])],
              ["s", "y"])
    s, y = compiled(m)(x)
    assert s.tolist() == ["1.5", "-INF", "0.1"] and y.tolist() == [1.5, -np.inf, 0.1]
    m = model([N("Cast", ["s"], ["y"], to=I64)], [texts("s", 1)], ["y"])
    assert compiled(m)(np.array(["12"])).tolist() == [12]
    with pytest.raises(UserError, match="run-value"):
        compiled(m)(np.array(["twelve"]))


def test_strings_are_no_numbers_to_the_user() -> None:
    with pytest.raises(UserError, match="is of strings"):
        tilewright.compile(model([N("Neg", ["x"], ["y"])], [texts("x", 3)], ["y"], opset=20))
    for node in (N("StringConcat", ["x", "n"], ["y"]), N("Equal", ["n", "x"], ["y"])):
        with pytest.raises(UserError, match="is not of strings"):
            tilewright.compile(model([node], [texts("x", 3), value("n", [3], I64)], ["y"], opset=20))


def test_threads_have_dictionaries_of_their_own() -> None:
    made = compiled(model([N("StringConcat", ["x", "x"], ["y"])], [texts("x", 50)], ["y"], opset=20))
    wrong: list[str] = []

    def work(tag: str) -> None:
        for k in range(20):
            given = np.array([f"{tag}{k}{j}" for j in range(50)], object)
            if made(given).tolist() != [t + t for t in given]:
                wrong.append(tag)
    threads = [threading.Thread(target=work, args=(t,)) for t in "abcd"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def picture(kind: str) -> np.ndarray[Any, Any]:
    from PIL import Image
    out = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(out, kind)
    return np.frombuffer(out.getvalue(), np.uint8)


@pytest.mark.parametrize("kind, form", [("png", "RGB"), ("bmp", "BGR"), ("png", "Grayscale")])
def test_images(kind: str, form: str) -> None:
    data = picture(kind)
    m = model([N("ImageDecoder", ["x"], ["p"], pixel_format=form), N("Cast", ["p"], ["y"], to=TensorProto.FLOAT)],
              [value("x", data.shape, TensorProto.UINT8)], ["y"], opset=20)
    m.graph.value_info.append(value("p", [4, 4, 1 if form == "Grayscale" else 3], TensorProto.UINT8))
    want = by_reference(m, {"x": data})[0]
    np.testing.assert_array_equal(compiled(m)(data), want)
    with pytest.raises(UserError, match="run-value"):
        compiled(m)(np.zeros_like(data))


def test_images_need_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture("png")
    m = model([N("ImageDecoder", ["x"], ["y"])], [value("x", data.shape, TensorProto.UINT8)], ["y"], opset=20)
    m.graph.output[0].CopyFrom(value("y", [4, 4, 3], TensorProto.UINT8))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match="pillow-missing"):
        compiled(m)(data)


def test_any_operator_without_a_recipe_runs_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two kernels, with an absent operand, inside a loop's body."""
    record = OpRecord("host_twice", "opaque", lambda op: [operands(op, 2)[0].type] if op.inputs[1] else [op.inputs[0].type],
                      lambda a, x, y: 2 * x)
    monkeypatch.setitem(OPS._entries, "host_twice", record)
    monkeypatch.setitem(table._TABLE, ("", "Elu"), [(1, lambda c: c.add("host_twice", c.x(), None))])
    x = np.arange(6, dtype=np.float32)
    body = helper.make_graph([N("Elu", ["v"], ["w"]), N("Identity", ["go"], ["on"])], "b",
                             [value("i", [], I64), value("go", [], TensorProto.BOOL), value("v", [6])],
                             [value("on", [], TensorProto.BOOL), value("w", [6])])
    m = model([N("Sqrt", ["x"], ["a"]), N("Loop", ["n", "", "a"], ["b"], body=body), N("Neg", ["b"], ["y"])],
              [value("x", [6])], ["y"], weights={"n": np.int64(3)})
    np.testing.assert_allclose(compiled(m)(x), -8 * np.sqrt(x), rtol=1e-6)

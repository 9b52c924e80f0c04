"""Rooflines: work counted right, probes that do the work they claim, roofs from peaks, and what the command line shows."""
from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import tilewright
from tests import small_models
from tests.small_models import model, weight
from tilewright.core.errors import UserError
from tilewright.target import get_target
from tilewright.tools import peaks as probing
from tilewright.tools.commands import app
from tilewright.tools.peaks import Peaks
from tilewright.tools.roofline import bound, direct_flops, roofline

MADE_UP = Peaks(1, 100.0, {"L1": 400.0, "L2": 200.0, "L3": 100.0, "DRAM": 10.0}, {"L2": 200.0, "L3": 100.0, "DRAM": 20.0},
                {"L1": 1 << 15, "L2": 1 << 20, "L3": 1 << 25, "DRAM": 1 << 62})


def uses(text: str, **weights: object):
    """The launches of a model's kernels."""
    with tilewright.compile(model(text, **weights), threads=1) as made:
        return made.kernels


def only(text: str, op: str, **weights: object):
    """The one launch whose group has an operation of this kind."""
    (found,) = (u for u in uses(text, **weights) if any(o.op == op for o in u.group.operations))
    return found


# ---- work ------------------------------------------------------------------------------------------------------------
def test_a_product_counts_two_per_multiply_add_and_its_epilogue():
    u = only("net (float[8,16] x) => (float[8,24] y) { a = MatMul(x, w)\n b = Add(a, c)\n y = Relu(b) }", "matmul",
             w=weight(16, 24), c=weight(24))
    assert u.flops == 2 * 8 * 16 * 24 + 2 * 8 * 24
    assert u.weight_bytes == 4 * (16 * 24 + 24) and u.nbytes == u.weight_bytes + 4 * (8 * 16 + 8 * 24)


def test_moving_elements_is_no_arithmetic():
    (u,) = uses("net (float[6,5,4] x) => (float[4,6,5] y) { y = Transpose<perm = [2,0,1]>(x) }")
    assert u.flops == 0 and u.nbytes == 2 * 4 * 6 * 5 * 4


def test_a_gather_touches_only_the_rows_it_may_read():
    u = only("net (int64[3] ids) => (float[3,8] y) { y = Gather(table, ids) }", "gather", table=weight(1000, 8))
    assert u.nbytes == 3 * 8 + 4 * 3 * 8 + 4 * 3 * 8


def test_a_slice_touches_only_its_part():
    u = only("net (float[100,8] x) => (float[5,8] y) { a = Slice(x, s, e)\n y = Exp(a) }", "exp",
             s=np.array([3]), e=np.array([8]))
    assert u.nbytes == 2 * 4 * 5 * 8 and u.flops == 5 * 8


def test_depthwise_counts_its_window():
    u = only("net (float[1,32,10,10] x) => (float[1,32,8,8] y) { y = Conv<group = 32>(x, w) }", "conv",
             w=weight(32, 1, 3, 3))
    assert u.flops == direct_flops(u) == 2 * 9 * 32 * 64


def test_winograd_tells_executed_from_direct_operations():
    text = "net (float[1,64,28,28] x) => (float[1,64,28,28] y) { y = Conv<pads = [1,1,1,1]>(x, w) }"
    direct = 2 * 9 * 64 * 64 * 28 * 28
    counts = {}
    for numerics in ("strict", "default"):
        with tilewright.compile(model(text, w=weight(64, 64, 3, 3)), numerics=numerics, threads=1) as made:
            (u,) = (k for k in made.kernels if any(o.op == "winograd_conv" for o in k.group.operations))
            (op,) = (o for o in u.group.operations if o.op == "winograd_conv")
        points, tiles = (op.attrs["m"] + 2) ** 2, (28 // op.attrs["m"]) ** 2
        assert direct_flops(u) == direct
        assert 2 * points * tiles * 64 * 64 < u.flops < direct  # the product, and the transforms
        counts[numerics] = op.attrs["m"]
    assert counts["strict"] == 2


def test_strict_never_takes_more_than_two_outputs_per_tile():
    """Whatever the size: the default takes four somewhere among these."""
    chosen: dict[str, set[int]] = {"strict": set(), "default": set()}
    for c, size in ((64, 56), (128, 28), (256, 14), (64, 7)):
        m = model(f"net (float[1,{c},{size},{size}] x) => (float[1,{c},{size},{size}] y) "
                  "{ y = Conv<pads = [1,1,1,1]>(x, w) }", w=np.zeros((c, c, 3, 3), np.float32))
        for numerics, found in chosen.items():
            with tilewright.compile(m, numerics=numerics, threads=1) as made:
                found.update(o.attrs["m"] for u in made.kernels for o in u.group.operations if o.op == "winograd_conv")
    assert chosen["strict"] <= {2} and 4 in chosen["default"]


# ---- peaks -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def short(monkeypatch):
    """Probes of a few milliseconds."""
    monkeypatch.setattr(probing, "LEAST_DRAM", 8 << 20)
    monkeypatch.setattr(probing, "MOST_DRAM", 8 << 20)
    monkeypatch.setattr(probing, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(probing, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(probing, "FMA_SECONDS", 2e-4)


@pytest.mark.parametrize("name", ("native", "x86-64"))
def test_probes_do_the_work_that_they_count(name):
    target = get_target(name)
    program, flops = probing.product_program(target, 2, turns=3)
    probe = probing.Probe(probing.schedule_program(program, target), target, 2, fill=0.5)
    probe.best(rounds=1)
    a, b, out = probe.arrays
    np.testing.assert_allclose(out, 3 * (a @ b), rtol=1e-5)
    assert flops == 3 * 2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
    probe.close()


def test_reading_probe_reads_every_byte(monkeypatch):
    seen = []

    def rate(sch, target, threads, launches, nbytes):
        probe = probing.Probe(sch, target, threads, launches, fill=1.0)
        probe.best(rounds=1)
        seen.append((probe.arrays[1].sum() * 4, nbytes))
        probe.close()
        return 1.0
    monkeypatch.setattr(probing, "_rate", rate)
    monkeypatch.setattr(probing, "READ_BYTES", 1 << 18)
    for apart in (False, True):
        probing.stream_rate(get_target(), 2, 1 << 16, apart)
    assert all(total == counted >= 2 << 18 for total, counted in seen)


def test_peaks_of_this_machine(short):
    found = probing.measure(get_target(), 2)
    assert found.gflops > 0 and set(found.copy) == set(found.read) - {"L1"} and "DRAM" in found.copy
    assert all(rate > 0 for rate in (*found.read.values(), *found.copy.values()))


def test_levels_and_the_better_of_two():
    assert [MADE_UP.level_of(n) for n in (1, 1 << 15, 1 << 16, 1 << 21, 1 << 26)] == ["L1", "L1", "L2", "L3", "DRAM"]
    other = Peaks(1, 50.0, {**MADE_UP.read, "DRAM": 12.0}, {**MADE_UP.copy, "L2": 1.0}, MADE_UP.sizes)
    best = MADE_UP.or_better(other)
    assert best.gflops == 100 and best.read["DRAM"] == 12 and best.copy["L2"] == 200


# ---- roofs -------------------------------------------------------------------------------------------------------------
def test_the_longest_of_arithmetic_weights_and_activations_binds():
    (u,) = uses("net (float[512,64] x) => (float[512,64] y) { y = MatMul(x, w) }", w=weight(64, 64))
    assert bound(u, MADE_UP, 1 << 16) == ("compute", pytest.approx(u.flops / 100e9))
    (u,) = uses("net (float[1,512] x) => (float[1,512] y) { y = MatMul(x, w) }", w=weight(512, 512))
    assert bound(u, MADE_UP, 1 << 30) == ("DRAM", pytest.approx(4 * 512 * 512 / 10e9))
    assert bound(u, MADE_UP, 1 << 19) == ("L2", pytest.approx(max(4 * 512 * 512 / 200e9, u.flops / 100e9))) or \
        bound(u, MADE_UP, 1 << 19)[0] == "compute"
    (u,) = uses("net (float[64,4096] x) => (float[64,4096] y) { y = Relu(x) }")
    assert bound(u, MADE_UP, 1 << 19) == ("L3", pytest.approx(2 * 4 * 64 * 4096 / 100e9))


def test_roofline_of_a_model(mlp_model):
    with mlp_model as made:
        found = roofline(made, lambda: MADE_UP, runs=2, rounds=2)
    assert [r.number for r in found.rows] == list(range(len(made.kernels)))
    assert all(r.microseconds > 0 and r.launches == 1 for r in found.rows)
    above = [r.above for r in found.worst(2)]
    assert len(above) == min(2, len(found.rows)) and above == sorted((r.above for r in found.rows), reverse=True)[:2]
    totals = found.totals()
    assert totals["roof"] == pytest.approx(sum(r.roof for r in found.rows)) and totals["latency"] > 0
    faster = Peaks(1, 1e6, *(dict.fromkeys(d, 1e6) for d in (MADE_UP.read, MADE_UP.copy)), MADE_UP.sizes)
    assert all(a.microseconds == b.microseconds and a.roof > b.roof
               for a, b in zip(found.rows, found.against(faster).rows, strict=True))


@pytest.fixture
def mlp_model():
    return tilewright.compile(small_models.mlp(), threads=1)


def test_kernels_in_loops_count_each_launch():
    m = small_models.while_loop()
    with tilewright.compile(m, threads=1) as made:
        feeds = small_models.inputs(m)
        turns = float(made.run(feeds)[1])
        found = roofline(made, lambda: MADE_UP, feeds, runs=2, rounds=1)
    assert turns > 1 and turns in {r.launches for r in found.rows}


def test_a_loaded_library_has_no_roofline(mlp_model, tmp_path):
    mlp_model.save(tmp_path / "net.so")
    with tilewright.load(tmp_path / "net.so") as loaded, pytest.raises(UserError) as refused:
        roofline(loaded, lambda: MADE_UP)
    assert refused.value.code == "no-stages"


# ---- commands ------------------------------------------------------------------------------------------------------------
def test_commands_show_rooflines(short, tmp_path):
    onnx.save(small_models.convnet(), tmp_path / "net.onnx")

    def said(*words: object) -> str:
        result = CliRunner().invoke(app, [str(w) for w in words])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout
    (data,) = json.loads(said("bench", "--roofline", tmp_path / "net.onnx", "--json", "--threads", 1)).values()
    times = [r["microseconds"] for r in data["launches"]]
    assert times == sorted(times, reverse=True) and data["peaks"]["threads"] == 1
    assert data["totals"]["microseconds"] == pytest.approx(sum(times)) and len(data["worst"]) == min(10, len(times))
    text = said("bench", "--roofline", tmp_path / "net.onnx", "--threads", 1)
    assert "peaks of this machine" in text and "their roofs" in text
    worst = json.loads(said("profile", tmp_path / "net.onnx", "--json", "--runs", 2))["worst"]
    assert [r["above"] for r in worst] == sorted((r["above"] for r in worst), reverse=True) and worst
    assert "above its roof" in said("profile", tmp_path / "net.onnx", "--runs", 2)

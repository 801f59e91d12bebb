"""`mmcompress split`: two halves are the whole, the cut is the best by hand, and a table goes from device to device."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_conv import conv_model

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.export.graph import Numerics
from mmcompress.export.towers import image_graph
from mmcompress.measure.split import plan, times
from mmcompress.measure.split.document import DeviceTimes
from mmcompress.measure.split.halves import halves, sent_bytes, stream_of
from mmcompress.pipeline import standalone
from mmcompress.tensornames import hugging_face_from_state

DEPTH, TOKENS, WIDTH = 4, 17, 32
Array = np.ndarray[Any, Any]


@pytest.fixture
def exported(checkpoint: Callable[..., Artifact], tmp_path: Path) -> Artifact:
    """A tower of four blocks, in FP32, FP16 and INT8."""
    made = checkpoint(heads=(2,) * DEPTH, mlp=(64,) * DEPTH)
    return standalone.export(made.path, tmp_path / "exported", {"precisions": ("fp32", "fp16", "int8")}, static=False)


def run(model: Any, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, feeds), strict=True))


def pixels() -> Array:
    return np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)


@pytest.mark.parametrize("file", ["image-fp32.onnx", "image-fp16.onnx", "image-int8-unsigned.onnx"])
def test_halves_are_the_whole(exported: Artifact, file: str) -> None:
    """Behind each block, sent as it is, as FP16 and as INT8, whose arithmetic is numpy's."""
    model = onnx.load(str(exported.file(file)))
    whole = run(model, {"pixels": pixels()})["embedding"].astype(np.float64)
    cuts = stream_of(model, file)
    assert list(cuts) == [1, 2, 3] and {cut[1:] for cut in cuts.values()} == {(TOKENS, WIDTH)}
    for tensor, _, _ in cuts.values():
        first, second = halves(model, tensor, None)
        stream = run(first, {"pixels": pixels()})
        again = run(second, stream)["embedding"]
        # INT8 rounds to another step where a fused product is off in its last bit
        np.testing.assert_allclose(again, whole, atol=2e-3 if "fp32" not in file else 1e-6)
        weights = [sum(len(one.raw_data) for one in part.graph.initializer) for part in (first, second, model)]
        assert max(weights[:2]) < weights[2] <= 1.02 * sum(weights[:2])
        for wire, error in (("fp16", 1e-5 if "fp32" in file else 1e-3), ("int8", 1e-3)):
            first, second = halves(model, tensor, wire)  # type: ignore[arg-type]
            sent = run(first, {"pixels": pixels()})
            assert sum(one[0].nbytes for one in sent.values()) == sent_bytes(TOKENS, WIDTH, wire)  # type: ignore[arg-type]
            if wire == "int8" and "fp32" in file:
                scale, expected = by_hand(stream[tensor])
                np.testing.assert_allclose(sent["scale"], scale, rtol=1e-6)
                assert np.abs(sent["sent"].astype(int) - expected).max() <= 1 and sent["sent"].dtype == np.int8
                assert np.mean(sent["sent"] == expected) > 0.999
            cosine = (run(second, sent)["embedding"] * whole).sum(axis=1)
            assert (1 - cosine < error).all(), (file, tensor, wire)


def by_hand(stream: Array) -> tuple[Array, Array]:
    scale = np.abs(stream.astype(np.float32)).max(axis=-1, keepdims=True) / 127
    return scale, np.rint(stream / scale).astype(int)


def test_a_graph_without_names_is_refused(exported: Artifact) -> None:
    model = onnx.load(str(exported.file("image-fp32.onnx")))
    for node in model.graph.node:
        node.output[:] = [f"t/{name}" if "blocks" in name else name for name in node.output]
        node.input[:] = [f"t/{name}" if "blocks" in name else name for name in node.input]
    with pytest.raises(UsageError, match=r"g\.onnx has no two transformer blocks"):
        stream_of(model, "g.onnx")


def test_a_convolutional_tower_is_refused_for_what_it_is() -> None:
    model = conv_model()
    tensors = {name: x.numpy() for name, x in hugging_face_from_state(model.state_dict(), model.config).items()}
    with pytest.raises(UsageError, match=r"g\.onnx is of a convolutional tower, and split cuts between blocks of tran"):
        stream_of(image_graph(model.config, tensors, Numerics(), 18), "g.onnx")


def table(first: list[float], second: list[float], graph: str = "g") -> DeviceTimes:
    return DeviceTimes(
        schema_version=1,
        graph=graph,
        device="invented",
        backend="onnxruntime",
        threads=1,
        behind=tuple(range(len(first))),
        first_ms=tuple(first),
        second_ms=tuple(second),
    )


def test_the_best_cut_is_the_best_of_all_by_hand() -> None:
    """Against the sum of Neurosurgeon written out, for devices and lines of all kinds."""
    draw = np.random.default_rng(0)
    kinds = set()
    for rate, slow in itertools.product((1e5, 1e6, 1e7, 1e8, 1e9), (0.2, 1, 20)):
        blocks = draw.uniform(1, 4, 6)
        before = np.concatenate([[0], np.cumsum(blocks)])
        a, b = table(list(slow * before), list(slow * before[::-1])), table(list(before), list(before[-1] - before))
        sizes = {behind: int(draw.integers(1_000, 40_000)) for behind in range(1, 6)}
        ways = plan.options(a, b, plan.Payload(30_000, sizes, 100), plan.Line(rate, 0.5, 0.25), "fp16")
        by_hand = []
        for k in range(7):
            size = [30_000, *sizes.values(), None][k]
            link = 0.0 if size is None else 0.5 + 0.25 + (size + 100) * 8 / rate * 1000
            by_hand.append(a.first_ms[k] + link + b.second_ms[k])
        np.testing.assert_allclose([way.total_ms for way in ways], by_hand)
        assert plan.best(ways).behind == int(np.argmin(by_hand))
        assert plan.best_cut(ways).behind == 1 + int(np.argmin(by_hand[1:-1]))
        kinds.add("a" if plan.best(ways).behind == 6 else "b" if plan.best(ways).behind == 0 else "cut")
    assert kinds == {"a", "b", "cut"}


def test_halves_are_timed_after_a_pause() -> None:
    """As they are used: what takes longer after a wait takes longer here."""
    last = [0.0]

    def call() -> None:
        if time.perf_counter() - last[0] > 0.5 * times.PAUSE_S:
            time.sleep(0.02)
        last[0] = time.perf_counter()

    assert min(times.paused_ms(call)) >= 20


def test_tables_of_two_graphs_are_refused() -> None:
    payload = plan.Payload(1, {1: 1}, 1)
    with pytest.raises(CorruptInputError, match="are of the graph"):
        plan.options(table([0, 1], [1, 0]), table([0, 1], [1, 0], "other"), payload, plan.Line(1e6), "fp16")


@pytest.mark.parametrize("said, bits", [("20Mbps", 2e7), ("500kbps", 5e5), ("1.5Gbps", 1.5e9), ("3 mbps", 3e6)])
def test_bandwidths(said: str, bits: float) -> None:
    assert plan.bits_per_s(said) == bits


def test_from_device_to_device(
    exported: Artifact, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is made alone serves as the second device; both graphs lie in the artifact, and run together."""
    monkeypatch.setattr(times, "ROUNDS", 1)
    common = ("--backend", "onnxruntime", "--precision", "fp32", "--threads", 1, "--json")
    alone = cli("split", exported.path, "--device", "box=here", "--out", tmp_path / "box", *common)
    assert alone.code == 0, alone.err
    measured = json.loads(alone.out)["times"]
    assert measured["behind"] == [0, 1, 2, 3, 4] and measured["first_ms"][0] == measured["second_ms"][-1] == 0
    devices = f"phone=here,box={tmp_path / 'box/times.json'}"
    done = cli("split", exported.path, "--device", devices, "--bandwidth", "1Gbps", "--out", tmp_path / "cut", *common)
    assert done.code == 0, done.err
    document = json.loads(done.out)["split"]
    assert list(document["devices"]) == ["phone", "box"] and document["measured_ms"] is None
    assert document["cut"]["wire"] == "fp16" and document["int8_flips"] is None
    assert document["splits"] == (document["best"] == document["cut"])
    halves_ = [onnx.load(str(tmp_path / f"cut/image-{name}.onnx")) for name in ("first", "second")]
    sent = run(halves_[0], {"pixels": pixels()})
    whole = run(onnx.load(str(exported.file("image-fp32.onnx"))), {"pixels": pixels()})
    assert ((run(halves_[1], sent)["embedding"] * whole["embedding"]).sum(axis=1) > 1 - 1e-5).all()
    both = ("--device", "a=here,b=here", "--bandwidth", "2Mbps", "--loopback")
    run_too = cli("split", exported.path, *both, "--out", tmp_path / "both", *common)
    found = json.loads(run_too.out)["split"]
    assert found["request_ms"] > 0, "two processes wake up"
    assert found["cut"]["link_ms"] == pytest.approx(found["request_ms"] + 8e3 * found["cut"]["sent_bytes"] / 2e6)
    assert found["measured_ms"] >= 8e3 * (found["cut"]["sent_bytes"] - 100) / 2e6
    over = cli("split", exported.path, "--device", devices, "--bandwidth", "1Gbps", "--out", tmp_path / "box", *common)
    assert over.code == 2 and "which is read to make it" in over.err
    other = cli("split", exported.path, "--device", devices, "--bandwidth", "1Gbps", "--out", tmp_path / "x", "--json")
    assert other.code == 4 and "measure there again" in other.err


def test_int8_is_sent_where_the_budget_holds(
    tmp_path: Path, tiny_clip_folder: Path, coloured_squares: Path, cli: Callable[..., Any], monkeypatch: Any
) -> None:
    """By the flips that are counted on pairs; a budget that nothing holds leaves FP16."""
    monkeypatch.setattr(times, "ROUNDS", 1)
    graphs = standalone.export(str(tiny_clip_folder), tmp_path / "g", {"precisions": ("fp32",)}, static=False)
    common = (
        "--device",
        "a=here,b=here",
        "--bandwidth",
        "1Mbps",
        "--backend",
        "onnxruntime",
        "--data",
        coloured_squares,
    )
    done = cli("split", graphs.path, *common, "--max-flips", 1, "--out", tmp_path / "a", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)["split"]
    assert document["cut"]["wire"] == "int8" and 0 <= document["int8_flips"] <= 1
    from mmcompress.measure.split import split

    monkeypatch.setattr(split, "_flips", lambda *_: 0.5)
    done = cli("split", graphs.path, *common, "--max-flips", 0.4, "--out", tmp_path / "b", "--json")
    document = json.loads(done.out)["split"]
    assert document["cut"]["wire"] == "fp16" and document["int8_flips"] == 0.5


@pytest.mark.parametrize(
    "options, said",
    [
        (("--device", "a=here,b=here"), "two devices have a line between them"),
        (("--device", "a=here,b=here", "--bandwidth", "fast"), "'fast' is no bandwidth"),
        (("--device", "a=here,b=here", "--bandwidth", "0Mbps"), "'0Mbps' is no bandwidth"),
        (("--device", "a,b", "--bandwidth", "1Mbps"), "does not name two devices"),
        (("--device", "a=here,a=here", "--bandwidth", "1Mbps"), "does not name two devices"),
        (("--device", "a=here", "--bandwidth", "1Mbps"), "a alone is measured and nothing is split"),
        (("--device", "a=here", "--data", "demo:val"), "a alone is measured and nothing is split"),
        (("--device", "a=here", "--rtt-ms", "1"), "--rtt-ms is of a line, and none is given"),
        (
            ("--device", "a=here,b=here", "--bandwidth", "1Mbps", "--max-flips", "0"),
            "judged on pairs, and none are given",
        ),
        (("--device", "a=here,b=nowhere.json", "--bandwidth", "1Mbps"), "there is no table nowhere.json"),
        (("--device", "a=here,b=nowhere.json", "--bandwidth", "1Mbps", "--loopback"), "a table is of another one"),
        (("--device", "a=here,b=here", "--bandwidth", "1Mbps", "--precision", "int4"), "there is no precision 'int4'"),
    ],
)
def test_what_cannot_be_answered_is_refused_first(
    cli: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = cli("split", "demo:teacher", *options, "--out", tmp_path / "out")
    assert done.code == 2 and said in done.err and not (tmp_path / "out").exists()


def test_a_table_is_read_before_anything_becomes_graphs(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    table = ("--device", f"a=here,b={tmp_path / 't.json'}", "--bandwidth", "1Mbps")
    done = cli("split", "demo:teacher", *table, "--out", tmp_path / "out")
    assert done.code == 4 and "has no 'graph'" in done.err, done.err
    assert "becomes ONNX graphs" not in done.err and not (tmp_path / "out").exists()


def test_a_table_of_another_graph_is_refused_before_anything_is_measured(
    cli: Callable[..., Any], exported: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmcompress.measure.split import split

    monkeypatch.setattr(split, "measured_times", lambda *_: pytest.fail("it was measured"))
    table([0.0, 1.0], [1.0, 0.0], "0" * 64).write(tmp_path / "t.json")
    given = ("--device", f"a=here,b={tmp_path / 't.json'}", "--bandwidth", "1Mbps")
    done = cli("split", exported.path, *given, "--out", tmp_path / "out")
    assert done.code == 4 and "is of the graph 000000000000…" in done.err, done.err

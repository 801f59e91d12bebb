"""The verdict stage on a small model that knows its data: what it delivers, what it says, and when it stops a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from held_out import held_out_drift
from matched_clip import CAPTIONS, write_matched, write_squares
from numpy.typing import NDArray
from photos import write_photos

from mmcompress.artifact import Artifact
from mmcompress.budget import Budget
from mmcompress.compress.int8.samples import SHUFFLED
from mmcompress.config import DataConfig, VerdictConfig
from mmcompress.data.batches import batches, read
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.preprocess import normalize
from mmcompress.errors import CorruptInputError, GateFailedError, MissingRequirementError, UsageError
from mmcompress.export.export import Variant, read_int8
from mmcompress.export.graph import Numerics
from mmcompress.int8 import linear_modules
from mmcompress.measure import early
from mmcompress.measure.interleave import Record
from mmcompress.measure.verdict import contest, contestants, origins, ruling, verdict
from mmcompress.measure.verdict.candidates import CANDIDATES, candidates_for
from mmcompress.measure.verdict.contest import Contestant
from mmcompress.measure.verdict.document import HeldOutDrift
from mmcompress.measure.verdict.findings import Findings
from mmcompress.measure.verdict.heldout import Held, held_out
from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import parse_assignments
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.backends import CPU_BACKENDS, graph_for, open_file, open_session
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.session import Tower
from mmcompress.seen import SEEN, Seen
from mmcompress.stages import STAGES

QUICK = ["seconds=0.01", "samples=48", "max_flips=1"]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "ROUND_S", 0.002)
        patch.setattr(contest, "SCREENING_ROUNDS", 4)
        patch.setattr(contest, "ROUNDS", 4)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_matched(folder, write_squares(folder))
    return folder


def judge(world: Path, out: Path, *overrides: str, **asked: Any) -> Artifact:
    given = {"backend": "onnxruntime", "max_drop": 1.0, "data.validation": str(world / "squares-00000.tar"), **asked}
    return standalone.verdict(world / "quantized", out, {**given, **parse_assignments([*QUICK, *overrides])})


def document(artifact: Artifact) -> dict[str, Any]:
    return dict(json.loads(artifact.file("verdict.json").read_text()))


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return judge(world, tmp_path_factory.mktemp("made") / "int8", backend="openvino")


def test_the_artifact_is_an_export_in_float_and_int8(made: Artifact) -> None:
    assert [(graph.tower, graph.precision) for graph in made.manifest.graphs] == [
        (tower, precision) for tower in ("image", "text") for precision in ("fp32", "int8")
    ]
    assert "README.md" in made.manifest.files
    found = {}
    for precision in ("fp32", "int8"):
        with Encoder.open(made, "onnxruntime", precision) as encoder:  # type: ignore[arg-type]
            found[precision] = encoder.texts(CAPTIONS)
    assert 0.5 < float((found["fp32"] * found["int8"]).sum(axis=1).mean()) < 1 - 1e-6


def test_the_document_says_what_was_measured(made: Artifact) -> None:
    found = document(made)
    assert [(row["precision"], row["backend"]) for row in found["rows"]] == [
        ("fp32", "openvino"),
        ("fp32", "onnxruntime"),
        ("int8", "openvino"),
    ]
    assert (found["pairs"], found["texts"], found["missing"]) == (48, 48, {})
    assert all(one["passed"] for one in found["sanity"]) and len(found["sanity"]) == 5
    assert [row["drift"] is None for row in found["rows"]] == [True, False, False]
    fastest = [row for row in found["rows"] if row["image"]["against_fastest_float"] is None]
    to_beat = found["recommendation"]["to_beat"]
    assert [(row["precision"], row["backend"]) for row in fastest] == [(to_beat["precision"], to_beat["backend"])]
    assert sum(row["recommended"] for row in found["rows"]) == 1
    assert {one["name"] for one in found["candidates"]} == {c.name for c in CANDIDATES if "openvino" in c.backends}
    assert 1 <= sum(one["finalist"] for one in found["candidates"]) <= verdict.FINALISTS
    assert made.manifest.facts["recommendation"]["sentence"] == found["recommendation"]["sentence"]
    assert len(found["rows"][0]["text"]["rounds_ms"]) == found["environment"]["rounds"] >= 4


def test_the_recommendation_follows_from_the_figures(made: Artifact) -> None:
    found = document(made)
    int8 = found["rows"][-1]
    low = int8["image"]["against_fastest_float"]["ci95"][0]
    assert found["recommendation"]["int8"] == (low >= ruling.MARGIN and int8["drift"]["r10_lost"] <= 1.0)
    assert (found["recommendation"]["precision"] == "int8") == found["recommendation"]["int8"] == int8["recommended"]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_whose_linears_all_stay_in_float_is_the_float_graph(world: Path, tmp_path: Path, tower: Tower) -> None:
    origin, config = origins.origin_of(Artifact.open(world / "quantized")), VerdictConfig(data=DataConfig())
    candidate, numerics = next(origin.candidates("onnxruntime"))
    fp32 = contestants.written(origin, tmp_path, config, "fp32", Variant("fp32", Numerics()), "onnxruntime")
    kept = replace(numerics, kept=frozenset(origin.products(tower)))
    int8 = contestants.written(origin, tmp_path, config, candidate.name, Variant("int8", kept), "onnxruntime")
    for name, entrant in int8.towers.items():
        assert entrant.graph.precision == ("fp32" if name == tower else "int8")
        same = entrant.path.read_bytes() == fp32.towers[name].path.read_bytes()
        assert same == (name == tower)


def embedded(artifact: Artifact, held: Held, precision: Any) -> list[NDArray[np.float32]]:
    """Images and texts, as a delivered artifact embeds them."""
    assert artifact.preprocessing is not None
    feeds: dict[Any, NDArray[Any]] = {"image": normalize(held.pixels, artifact.preprocessing), "text": held.tokens}
    found = []
    for tower, values in feeds.items():
        graph = graph_for(artifact, tower, "openvino", precision)
        with open_session(artifact, graph, "openvino") as session:
            found.append(session.run({graph.inputs[0].name: values})["embedding"])
    return found


def test_drift_is_that_of_the_delivered_graphs(made: Artifact, world: Path) -> None:
    """Recomputed with plain numpy from the files of the artifact."""
    source = Artifact.open(world / "quantized")
    asked = VerdictConfig(data=DataConfig(validation=str(world / "squares-00000.tar")), samples=48)
    held = held_out(source, asked)
    (a, b), (c, d) = (embedded(made, held, precision) for precision in ("fp32", "int8"))

    def hit(queries: Any, candidates: Any, own: Any) -> Any:
        scores = queries @ candidates.T
        return (scores > scores[np.arange(len(queries)), own][:, None]).sum(axis=1) < 10

    order = np.argsort(held.image_group)
    lost = np.concatenate(
        [
            hit(a, b, held.image_group) & ~hit(c, d, held.image_group),
            hit(b, a, order) & ~hit(d, c, order),
        ]
    )
    moved = document(made)["rows"][-1]["drift"]
    assert moved["r10_lost"] == pytest.approx(lost.mean())
    assert moved["flip_rate"] == pytest.approx(((a @ b.T).argmax(1) != (c @ d.T).argmax(1)).mean())
    assert moved["cosine_mean"] == pytest.approx((a * c).sum(axis=1).mean(), abs=1e-5)


def contestant(name: str) -> Contestant:
    return Contestant(name, "int8", {})


def test_drift_is_measured_from_the_fastest_on_until_two_are_within_the_budget() -> None:
    lost = {
        contestant("a"): 0.02,
        contestant("b"): 0.004,
        contestant("c"): 0.01,
        contestant("d"): 0.0,
        contestant("e"): 0.0,
    }
    a, b, c, d, e = lost
    asked: list[Contestant] = []

    def drift_of(one: Contestant) -> HeldOutDrift:
        asked.append(one)
        return held_out_drift(r10_lost=lost[one], flip_rate=0.03 if one is d else 0.0)

    drop = Budget(0.005, None, 10**8)
    assert verdict.within_budget([a, b, c, d, e], drift_of, drop)[0] == [b, d] and asked == [a, b, c, d]
    assert verdict.within_budget([a, b, c, d, e], drift_of, replace(drop, max_flips=0.02))[0] == [b, e]
    finalists, drifts = verdict.within_budget([a, b, c], drift_of, Budget(0.001, None, 10**8))
    assert finalists == [b] and set(drifts) == {a, b, c}, "the one that loses least stands for INT8"


def test_of_equally_fast_finalists_the_one_that_drifts_least_is_taken() -> None:
    """Rounds of two that differ by 0.2%, less than any interval tells apart, and then by 20%."""
    near, far, fp32 = contestant("near"), contestant("far"), contestant("fp32")
    drifts = {
        near: held_out_drift(cosine_mean=0.9999, text_cosine_mean=0.9998),
        far: held_out_drift(cosine_mean=0.99995, text_cosine_mean=0.9991),
    }

    def chosen(far_ms: float) -> Contestant:
        times = {near: 1.0, far: far_ms, fp32: 2.0}
        measured: Any = {
            (one, "image"): Record([[np.full(3, ms * (1 + 0.001 * i))] for i in range(6)]) for one, ms in times.items()
        }
        held: Any = None
        return Findings([fp32], {}, [], [near, far], {}, measured, drifts, held, []).int8

    assert chosen(0.998) is near
    assert chosen(0.8) is far


def test_too_few_photos_are_called_photos(world: Path, tmp_path: Path, coloured_squares: Path) -> None:
    photos = write_photos(tmp_path / "photos", coloured_squares, 1)
    for path in sorted(photos.iterdir())[15:]:
        path.unlink()
    with pytest.raises(UsageError, match="has 15 photos that the calibration has not seen, 40 are enough"):
        judge(world, tmp_path / "v", **{"data.validation": str(photos)})


def test_photos_choose_among_labels_where_they_are_given(
    world: Path, tmp_path: Path, coloured_squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(CAPTIONS[:4]), encoding="utf-8")
    photos = write_photos(tmp_path / "photos", coloured_squares, 1)
    found = document(judge(world, tmp_path / "v", **{"data.validation": str(photos), "data.labels": str(labels)}))
    assert found["labels"] == str(labels) and found["texts"] == 4 and found["own_answers"]
    assert "among 4 labels hardly a hit at 10 is lost" in " ".join(capsys.readouterr().err.split())
    judge(world, tmp_path / "w", **{"data.labels": str(labels)})
    assert "is not used: the pairs of" in " ".join(capsys.readouterr().err.split())


def test_a_race_ends_when_it_is_decided(world: Path, tmp_path: Path) -> None:
    source = Artifact.open(world / "quantized")
    variant = contestants.Variant("fp32", contestants.Numerics())
    asked = VerdictConfig(data=DataConfig())
    one = contestants.written(origins.origin_of(source), tmp_path, asked, "fp32", variant, "onnxruntime")
    seen: list[int] = []

    def decided(measured: Any) -> bool:
        seen.append(len(measured[one, "text"].rounds))
        return seen[-1] == 5

    measured = contest.timed_contestants([one], contest.TOWERS, 1, (4, 9), 0, decided)
    assert seen == [4, 5] and len(measured[one, "image"].rounds) == 5
    assert len(contest.timed_contestants([one], ("image",), 2, (1, 3), 0)[one, "image"].rounds) == 3


@pytest.fixture(scope="module")
def refused(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A verdict against INT8, for its drift."""
    return judge(world, tmp_path_factory.mktemp("refused") / "int8", max_drop=0.0)


def test_strict_stops_after_the_artifact_is_written_and_again_on_a_rerun(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stage, out = STAGES["verdict"], tmp_path / "int8"
    config = VerdictConfig(
        data=DataConfig(validation=str(world)),
        backend="onnxruntime",
        max_drop=0,
        max_flips=None,
        samples=48,
        seconds=0.01,
        strict=True,
    )
    source = {"checkpoint": Artifact.open(world / "quantized")}
    digests = []
    for _ in range(2):
        with pytest.raises(GateFailedError) as caught:
            run_stage(stage, config, source, (), out)
        assert caught.value.exit_code == 1 and "INT8 is not recommended: Do not ship INT8" in caught.value.what
        assert str(out) in caught.value.hint and "of the R@10 hits, and 0.00% were allowed" in caught.value.what
        digests.append(Artifact.open(out).digest)
    assert digests[0] == digests[1], "the second run reused it"
    assert "warning: Do not ship INT8" in " ".join(capfd.readouterr().err.split())
    lenient = run_stage(stage, config.model_copy(update={"strict": False}), source, (), out)
    assert lenient.digest == digests[0], "strict is no part of the key"


def test_the_command_prints_the_table_and_fails_only_where_strict(
    cli: Callable[..., Any], world: Path, refused: Artifact
) -> None:
    asked = ("verdict", world / "quantized", "--out", refused.path, "--backend", "onnxruntime", "--max-drop", "0")
    asked += ("--data", world / "squares-00000.tar", *(part for one in QUICK for part in ("--set", one)))
    done = cli(*asked)
    assert done.code == 0 and "FP32" in done.out and "Do not ship INT8" in done.out and "reused" in done.err
    done = cli(*asked, "--strict", "--json")
    assert done.code == 1 and "error: INT8 is not recommended: Do not ship INT8" in done.err
    found = json.loads(done.out.splitlines()[-1])
    assert found["kind"] == "onnx" and found["verdict"]["recommendation"]["int8"] is False


def test_quantize_gives_the_verdict_beside_its_own_artifact(
    cli: Callable[..., Any], world: Path, refused: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized, asked = having_seen(Artifact.open(world / "quantized"), 48), []
    said = quantized.manifest.model_copy(update={"config": {"samples": 48}})
    quantized = replace(quantized, manifest=said)

    def beside(made: Artifact, backend: str | None) -> Artifact:
        asked.append((made.path, backend))
        return refused

    monkeypatch.setattr(standalone, "quantize", lambda *_, **__: replace(quantized, path=tmp_path / "q"))
    monkeypatch.setattr(standalone, "verdict_beside", beside)
    plain = cli("quantize", world / "quantized", "--out", tmp_path / "q")
    assert plain.code == 0 and not asked and "Ship" not in plain.out
    judged = cli("quantize", world / "quantized", "--out", tmp_path / "q", "--backend", "onnxruntime", "--strict")
    assert judged.code == 1 and asked == [(tmp_path / "q", "onnxruntime")] and "Do not ship INT8" in judged.out


def test_a_broken_baseline_is_an_error_that_says_which_check_failed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = origins.CheckpointOrigin.embedded

    def other(*arguments: Any) -> Any:
        return {tower: rows + np.float32(1e-3) for tower, rows in real(*arguments).items()}

    monkeypatch.setattr(origins.CheckpointOrigin, "embedded", other)
    with pytest.raises(GateFailedError, match="fails its sanity check: equal to torch"):
        judge(world, tmp_path / "v")
    assert not (tmp_path / "v").exists()


def test_a_graph_that_the_backend_does_not_load_is_null_with_the_reason(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.parent.name == "signed":
            raise CorruptInputError(f"onnxruntime cannot load {path.name}: no such kernel")
        return open_file(path, *arguments, **keywords)

    monkeypatch.setattr(contest, "open_file", refusing)
    found = document(judge(world, tmp_path / "v"))
    assert found["missing"] == {} and [row["precision"] for row in found["rows"]] == ["fp32", "int8"]
    (signed,) = (one for one in found["candidates"] if one["name"] == "signed")
    assert "no such kernel" in signed["failed"] and signed["image_p50_ms"] is None and not signed["finalist"]


class Loaded(contest.Entrant):
    """A graph that every backend takes."""

    def open(self) -> Any:
        return nullcontext()


@pytest.mark.parametrize("loads", [True, False])
def test_fp16_is_raced_on_gpus_alone(loads: bool) -> None:
    """CPU runtimes compute it in FP32, so that it would only be FP32 again."""

    def write(name: str, variant: Any, backend: Any) -> Any:
        if name == "fp16" and not loads:
            raise CorruptInputError("no such kernel")
        graph: Any = None
        return Contestant(name, variant.precision, dict.fromkeys(contest.TOWERS, Loaded(Path(), graph, backend, None)))

    floats, missing = contestants.float_contestants(write, "tensorrt-rtx")
    assert [one.precision for one in floats] == ["fp32", "fp16"][: 1 + loads]
    assert missing == ({} if loads else {"fp16 on tensorrt-rtx": "no such kernel"})
    for backend in CPU_BACKENDS:
        floats, missing = contestants.float_contestants(write, backend)
        assert {one.precision for one in floats} == {"fp32"} and missing == {}


def test_gpu_backends_without_a_gpu_say_why(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"tensorrt": "there is no NVIDIA driver", "tensorrt-rtx": "there is no NVIDIA driver"}
    monkeypatch.setattr(early, "available_backends", lambda: reasons)
    for backend in reasons:
        with pytest.raises(MissingRequirementError, match="does not run here: there is no NVIDIA driver") as caught:
            judge(world, tmp_path / "v", backend=backend)
        assert caught.value.exit_code == 3 and "GPU" in caught.value.hint
        assert ("cannot say how fast" in caught.value.hint) == (backend == "tensorrt-rtx")


def test_candidates_differ_and_leave_in_float_what_quantize_left(world: Path) -> None:
    source = Artifact.open(world / "quantized")
    int8 = read_int8(source)
    modules = linear_modules(source.model)
    found = {c.name: n for c, n in candidates_for("openvino", source.model, int8)}
    assert found["all"].kept == frozenset() and found["signed"].activations == "signed"
    assert found["mlp"].kept == {name for name in modules if name.endswith(("qkv", "out"))}
    outs = frozenset(name for name in modules if name.endswith(".out"))
    fewer = {kind: replace(numerics, kept=outs) for kind, numerics in int8.items()}
    assert "no-out" not in {c.name for c, _ in candidates_for("openvino", source.model, fewer)}, "it is `all` by then"
    every = {kind: replace(numerics, kept=frozenset(modules)) for kind, numerics in int8.items()}
    assert not list(candidates_for("openvino", source.model, every))
    on_gpus = {c.name: n for c, n in candidates_for("tensorrt", source.model, int8)}
    assert set(on_gpus) == {"all", "qkv-fc1", "mlp", "no-out", "by-image", "fp8"}
    assert {name for name, n in on_gpus.items() if n.activations != "signed"} == {"fp8"}
    assert all(n.half_products and n.by_token == (name != "by-image") for name, n in on_gpus.items())
    assert "by-image" not in {c.name for c, _ in candidates_for("tensorrt-rtx", source.model, int8)}


def test_a_candidates_graph_has_q_dq_where_it_says(world: Path, tmp_path: Path) -> None:
    source = Artifact.open(world / "quantized")
    numerics = {c.name: n for c, n in candidates_for("openvino", source.model, read_int8(source))}["qkv-fc1"]
    variant = contestants.Variant("int8", numerics)
    config = VerdictConfig(data=DataConfig())
    pair = contestants.written(origins.origin_of(source), tmp_path, config, "qkv-fc1", variant, "openvino")
    graph = onnx.load(str(pair.towers["image"].path)).graph
    quantized = {node.name.split(".input")[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert quantized == {f"image.blocks.{p}" for p in ("0.qkv", "0.fc1", "1.qkv.q", "1.qkv.kv", "1.fc1")}


def having_seen(source: Artifact, pairs: int | None) -> Artifact:
    facts = {**source.manifest.facts, SEEN: Seen(pairs=pairs, seed=3, buffer=SHUFFLED).model_dump()}
    return replace(source, manifest=source.manifest.model_copy(update={"facts": facts}))


def test_without_validation_the_pairs_are_those_that_calibration_has_not_seen(world: Path) -> None:
    source = having_seen(Artifact.open(world / "quantized"), 24)
    held = held_out(source, VerdictConfig(data=DataConfig(train=str(world))))
    assert source.preprocessing is not None
    stream = batches(str(world), source.preprocessing, batch=8, shuffle_seed=3, buffer=SHUFFLED)
    seen = {image.tobytes() for batch in [next(stream) for _ in range(3)] for image in batch.pixels}
    assert len(held.pixels) == 28 and not seen & {image.tobytes() for image in held.pixels}


def test_too_few_pairs_and_none_at_all_are_refused(world: Path) -> None:
    source = Artifact.open(world / "quantized")
    on_training_pairs = VerdictConfig(data=DataConfig(train=str(world)))
    with pytest.raises(UsageError, match="has 0 different captions that the calibration has not seen, 20 are needed"):
        held_out(having_seen(source, 512), on_training_pairs)
    with pytest.raises(UsageError, match=r"was trained on all of .*, so none of its pairs can judge it"):
        held_out(having_seen(source, None), on_training_pairs)
    with pytest.raises(UsageError, match="does not say which training pairs it was calibrated on"):
        held_out(source, on_training_pairs)
    with pytest.raises(UsageError, match="needs pairs to measure drift on"):
        held_out(source, VerdictConfig(data=DataConfig()))


def test_what_calibrated_is_not_held_out_when_it_is_given_again(world: Path, tmp_path: Path) -> None:
    """The set is known by its content: a copy elsewhere is the same, and any other set judges whole."""
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copyfile(world / "squares-00000.tar", copy / "squares-00000.tar")
    again = VerdictConfig(data=DataConfig(validation=str(copy)))
    source = having_seen(Artifact.open(world / "quantized"), 24)
    elsewhere = source.manifest.model_copy(update={"parents": {"data.train": fingerprint("demo:val")}})
    assert len(held_out(replace(source, manifest=elsewhere), again).pixels) == 60
    calibrated = source.manifest.model_copy(update={"parents": {"data.train": fingerprint(str(copy))}})
    source = replace(source, manifest=calibrated)
    left = held_out(source, VerdictConfig(data=DataConfig(train=str(world))))
    np.testing.assert_array_equal(held_out(source, again).pixels, left.pixels)
    with pytest.raises(UsageError, match="has 0 different captions that the calibration has not seen") as caught:
        held_out(having_seen(source, 512), again)
    assert "--samples" in caught.value.hint


def test_parts_of_one_set_judge_only_where_they_share_no_sample(world: Path) -> None:
    def judged(fitted: str, spec: str) -> int:
        said = {"parents": {"data.train": fingerprint(fitted)}, "config": {"data": {"train": fitted}}}
        source = having_seen(Artifact.open(world / "quantized"), 512)
        source = replace(source, manifest=source.manifest.model_copy(update=said))
        return len(held_out(source, VerdictConfig(data=DataConfig(validation=spec))).pixels)

    first, rest = f"part:0-5/10:{world}", f"part:6-9/10:{world}"
    assert judged(rest, first) == sum(1 for _ in read(first)) < 60
    for fitted, spec in ((first, str(world)), (str(world), first), (first, f"part:5-9/10:{world}")):
        with pytest.raises(UsageError, match=r"shares samples with what .* was calibrated on") as caught:
            judged(fitted, spec)
        assert f"--data {fitted}:" in caught.value.hint


@pytest.mark.parametrize(
    "error",
    [
        UsageError("tensorrt built no engine for native: it has no kernel for a part of it", ""),
        MissingRequirementError("tensorrt built no engine for native: CUDA error: out of memory", ""),
        GateFailedError("image-int8.engine fell back as a whole", ""),
        CorruptInputError("tensorrt does not load what it built", ""),
    ],
)
def test_a_candidate_that_is_not_built_ends_no_verdict(error: Exception, world: Path) -> None:
    source = Artifact.open(world / "quantized")
    candidates = list(candidates_for("tensorrt", source.model, read_int8(source)))
    contestant: Any = Contestant("mlp", "int8", dict.fromkeys(contest.TOWERS, SimpleNamespace(open=nullcontext)))

    def write(name: str, variant: Any, backend: Any) -> Contestant:
        if name != "mlp":
            raise error
        return contestant

    tried = contestants.tried_candidates(write, "tensorrt", candidates)
    assert [attempt.candidate.name for attempt in tried if attempt.contestant] == ["mlp"]
    assert {attempt.failed for attempt in tried} == {None, error.what}  # type: ignore[attr-defined]

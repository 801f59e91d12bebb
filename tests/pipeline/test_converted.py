"""A teacher where an artifact is wanted: it becomes one first, equal to itself, and is reused until it changes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from photos import write_photos
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from mmcompress.artifact import Artifact
from mmcompress.data.batches import decode
from mmcompress.data.preprocess import normalize
from mmcompress.data.sentences import SENTENCES
from mmcompress.errors import UsageError
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.lock import locked
from mmcompress.measure.verdict import contest
from mmcompress.pipeline.converted import graphs_to_use, name_of, names_of
from mmcompress.pipeline.sources import parent_beside
from mmcompress.places import CACHE
from mmcompress.publish import draft_of
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

Cli = Callable[..., Any]
FEW = ("--samples", "24", "--batch", "8")
TEXTS = ["a red square", "RED of a blue", "", "a " * 40]


@pytest.fixture
def teacher(tmp_path: Path, tiny_clip_folder: Path) -> Path:
    return Path(shutil.copytree(tiny_clip_folder, tmp_path / "my clip"))


@pytest.fixture
def photos(tmp_path: Path, coloured_squares: Path) -> Path:
    return write_photos(tmp_path / "photos", coloured_squares, 2)


def changed(teacher: Path) -> None:
    """Other weights under the same names."""
    model = CLIPModel.from_pretrained(teacher)
    with torch.no_grad():
        model.visual_projection.weight[0].mul_(5)
    model.save_pretrained(teacher)


def test_a_checkpoint_equals_the_teacher_in_transformers(
    cli: Cli, tmp_path: Path, teacher: Path, coloured_squares: Path
) -> None:
    assert cli("convert", teacher, "--out", tmp_path / "c").code == 0
    made = Artifact.open(tmp_path / "c")
    ours, theirs = dual_encoder_from_checkpoint(made.path, made.model), CLIPModel.from_pretrained(teacher).eval()
    assert made.tokenizer and made.preprocessing
    tokens = torch.from_numpy(tokenize(load_tokenizer(made.file("tokenizer.json")), TEXTS, made.tokenizer))
    image = (coloured_squares / "05.png").read_bytes()
    pixels = torch.from_numpy(normalize(decode(image, made.preprocessing)[None], made.preprocessing))
    their_tokens = AutoTokenizer.from_pretrained(teacher)(
        TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )
    with Image.open(coloured_squares / "05.png") as opened:
        processor = AutoImageProcessor.from_pretrained(teacher, use_fast=False)
        their_pixels = processor(opened.convert("RGB"), return_tensors="pt")["pixel_values"]
    assert (tokens == their_tokens["input_ids"]).all() and (pixels - their_pixels).abs().max() < 1e-5
    with torch.inference_mode():
        text = torch.nn.functional.normalize(theirs.get_text_features(their_tokens["input_ids"]), dim=-1)
        seen = torch.nn.functional.normalize(theirs.get_image_features(their_pixels), dim=-1)
        assert (ours.encode_text(tokens) - text).abs().max() <= 1e-5
        assert (ours.encode_image(pixels) - seen).abs().max() <= 1e-5
    assert ours.logit_scale.item() == theirs.logit_scale.item()
    assert "reused" in cli("convert", teacher, "--out", tmp_path / "c").err


def test_a_teacher_that_says_other_than_its_weights_is_not_converted(cli: Cli, tmp_path: Path, teacher: Path) -> None:
    """Images of another side than the model's."""
    path = teacher / "preprocessor_config.json"
    settings = {**json.loads(path.read_text()), "size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}
    path.write_text(json.dumps(settings))
    done = cli("convert", teacher, "--out", tmp_path / "c")
    assert done.code in (2, 4) and "40" in done.err and not (tmp_path / "c").exists()


def test_quantize_takes_a_teacher_and_photos(cli: Cli, tmp_path: Path, teacher: Path, photos: Path) -> None:
    asked = ("quantize", teacher, "--data", photos, "--out", tmp_path / "q", *FEW)
    done = cli(*asked)
    assert done.code == 0, done.err
    made = Artifact.open(tmp_path / "q")
    assert made.manifest.facts["texts"] == SENTENCES
    assert made.manifest.parents["checkpoint"] == Artifact.open(tmp_path / "q-checkpoint").digest
    again = cli(*asked).err
    assert again.count("reused") == 2 and "running" not in again
    changed(teacher)
    assert cli(*asked).err.count("running") == 2


TRUST = ("--set", "teacher.trust_remote_code=true")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("convert", ()),
        ("quantize", ("--data", "PHOTOS", *FEW)),
        ("prune", ("--data", "SQUARES", "--mlp-multiple", "8", *FEW)),
        ("drift", ("--data", "SQUARES")),
        ("export", ("--precision", "fp32")),
    ],
)
def test_leave_to_run_code_reaches_what_a_teacher_becomes(
    cli: Cli,
    tmp_path: Path,
    teacher: Path,
    photos: Path,
    coloured_squares: Path,
    command: str,
    options: tuple[str, ...],
) -> None:
    """And without it, the hint is what then works."""
    config = json.loads((teacher / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (teacher / "config.json").write_text(json.dumps({**config, "auto_map": auto}))
    (teacher / "own.py").write_text(
        "from transformers import CLIPConfig, CLIPModel\n"
        "class Config(CLIPConfig): pass\n"
        "class Model(CLIPModel): config_class = Config\n"
    )
    places = {"PHOTOS": photos, "SQUARES": coloured_squares}
    asked = (command, teacher, *(places.get(option, option) for option in options), "--out", tmp_path / "o")
    refused = cli(*asked)
    assert refused.code == 2 and " ".join(TRUST) in refused.err.replace("\n", " ")
    done = cli(*asked, *TRUST)
    assert done.code == 0, done.err
    assert Artifact.open(tmp_path / "o")


def test_prune_embeds_a_teacher_as_its_own(cli: Cli, tmp_path: Path, teacher: Path, coloured_squares: Path) -> None:
    asked = ("prune", teacher, "--data", coloured_squares, "--mlp-multiple", "8", *FEW, "--out", tmp_path / "p")
    done = cli(*asked, "--set", "data.max_bad_fraction=0.3", "--embed-views", "2", "--seed", "4")
    assert done.code == 0, done.err
    made, embedded = Artifact.open(tmp_path / "p"), Artifact.open(tmp_path / "p-embeddings")
    assert made.manifest.facts["macs_share"] < 1
    assert embedded.manifest.config["data"]["max_bad_fraction"] == 0.3
    assert (embedded.manifest.config["views"], embedded.manifest.config["seed"]) == (2, 4)
    assert embedded.manifest.config["teacher"]["source"] == str(teacher)
    assert parent_beside(made, "embeddings") == embedded.path
    further = cli(
        "distill", "--from", tmp_path / "p", "--out", tmp_path / "r", "--optimizer-steps", "1", "--optimizer-batch", "8"
    )
    assert further.code == 0, further.err


def test_a_converted_checkpoint_is_its_own_teacher_too(cli: Cli, tmp_path: Path, teacher: Path, photos: Path) -> None:
    """Nothing that it records is fetched: the checkpoint itself is embedded."""
    assert cli("convert", teacher, "--out", tmp_path / "c").code == 0
    shutil.rmtree(teacher)
    done = cli("prune", tmp_path / "c", "--data", photos, "--mlp-multiple", "8", *FEW, "--out", tmp_path / "p")
    assert done.code == 0, done.err
    assert "warning: what goes and what is fitted is told from 24 pairs; 64 are needed" in " ".join(done.err.split())


@pytest.mark.parametrize("command", ["quantize", "prune", "verdict"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_converted(
    cli: Cli, tmp_path: Path, teacher: Path, photos: Path, command: str
) -> None:
    key = "--quantize-device" if command == "verdict" else "--device"
    done = cli(command, teacher, "--data", photos, "--out", tmp_path / "o", key, "cuda:7")
    assert (done.code, [*tmp_path.glob("o*")]) == (3, []), done.err
    assert "device = 'cuda:7', and torch finds" in done.err


def test_a_verdict_quantizes_first(
    cli: Cli, tmp_path: Path, teacher: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ROUND_S": 0.002, "SCREENING_ROUNDS": 4, "ROUNDS": 4}.items():
        monkeypatch.setattr(contest, name, value)
    quick = ("--quantize-samples", "16", "--quantize-batch", "8", "--seconds", "0.01", "--backend", "onnxruntime")
    asked = ("verdict", teacher, "--data", photos, "--out", tmp_path / "v", *quick)
    done = cli(*asked, "--max-drop", "any", "--max-flips", "any")
    assert done.code == 0, done.err
    fitted = Artifact.open(tmp_path / "v-quantized")
    assert fitted.manifest.config["samples"] == 16 and fitted.manifest.config["max_drop"] is None
    told = json.loads((tmp_path / "v" / "verdict.json").read_text())
    assert "better than chance" not in {check["check"] for check in told["sanity"]}
    refused = cli("verdict", tmp_path / "v-quantized", "--quantize-samples", "9", "--out", tmp_path / "w")
    assert refused.code == 2 and "quantize.samples is a key of quantize, which has nothing to do" in refused.err


def test_photos_are_judged_by_the_first_rows_own_answers(cli: Cli, tmp_path: Path, teacher: Path, photos: Path) -> None:
    assert cli("quantize", teacher, "--data", photos, "--out", tmp_path / "q", *FEW).code == 0
    done = cli("drift", teacher, tmp_path / "q", "--data", photos, "--out", tmp_path / "d", "--gallery", "0")
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "d" / "drift.json").read_text())
    assert told["own_answers"] and [row["row"] for row in told["rows"]] == ["my-clip", "q"]
    first, second = (row["metrics"] for row in told["rows"])
    assert first["i2t_r1"] == 1 and first["top1"] is None
    assert second["flip_rate"] == pytest.approx(second["flips_lost"])
    assert second["i2t_r1"] == pytest.approx(1 - second["flip_rate"], abs=0.05)
    assert cli("report", tmp_path / "d", "--out", tmp_path / "r").code == 0  # which finds what it measured
    page = json.loads((tmp_path / "r" / "report.json").read_text())
    assert any("have no captions: right is what my-clip answers" in warning for warning in page["warnings"])
    assert any("% of the photos as my-clip does" in line for line in page["headlines"])
    shutil.rmtree(tmp_path / "d-sources")
    shutil.rmtree(tmp_path / "q")
    lost = cli("report", tmp_path / "d", "--out", tmp_path / "r")
    assert lost.code == 2 and "d measured my-clip, q, which is not beside it" in lost.err


def test_what_learns_from_captions_refuses_photos(cli: Cli, tmp_path: Path, photos: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[student]\nsource = "vit-t8-64"\n[[stage]]\nrun = "train"\n')
    done = cli("train", recipe, "--set", f"data.train={photos}", "--out", tmp_path / "t")
    assert done.code == 2 and "photos without captions" in done.err and not (tmp_path / "t").exists()


def test_captions_beside_photos_are_not_passed_over_in_silence(
    cli: Cli, tmp_path: Path, teacher: Path, photos: Path
) -> None:
    """Only `data pack` reads them; the refusal said that there are none, and `embed` said nothing."""
    first = min(photos.glob("*.*"))
    first.with_suffix(".txt").write_text("a red square")
    recipe = tmp_path / "r.toml"
    recipe.write_text('[student]\nsource = "vit-t8-64"\n[[stage]]\nrun = "train"\n')
    done = cli("train", recipe, "--set", f"data.train={photos}", "--out", tmp_path / "t")
    told = " ".join(done.err.split())
    assert done.code == 2 and f"as {first.stem}.txt does" in told and f"mmcompress data pack {photos}" in told
    done = cli("embed", "--teacher", teacher, "--data", photos, "--out", tmp_path / "e")
    told = " ".join(done.err.split())
    assert done.code == 0 and told.count("captions beside them") == 1 and f"as {first.stem}.txt, are not read" in told


def test_what_lies_in_the_cache_is_called_as_its_source_is(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages, rows and warnings call an artifact by its folder: a page's models were `teacher-f04223d7`."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    other = Path(shutil.copytree(teacher, tmp_path / "elsewhere" / "my clip"))
    graphs, others = graphs_to_use(teacher), graphs_to_use(other)
    assert graphs.path.name == others.path.name == name_of(teacher) == "my-clip"
    assert graphs.path != others.path and graphs_to_use(str(teacher)).path == graphs.path
    monkeypatch.chdir(graphs.path)
    assert Artifact.open(Path()).path.name == "my-clip", "and one that is given as the folder one stands in"


def test_graphs_in_the_cache_are_used_by_several_commands_at_once(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    made = graphs_to_use(str(teacher))
    capsys.readouterr()
    checkpoint = made.path.with_name(f"{made.path.name}-checkpoint")
    with locked(reading=[made.path, checkpoint]):
        assert graphs_to_use(str(teacher)).digest == made.digest
    assert capsys.readouterr().err.count("reused") == 2
    with locked(made.path), pytest.raises(UsageError, match="another mmcompress is running"):
        graphs_to_use(str(teacher))
    draft_of(made.path).mkdir()  # of a killed run: who removes it holds the place alone
    with locked(reading=[made.path]), pytest.raises(UsageError, match="another mmcompress is running"):
        graphs_to_use(str(teacher))
    assert graphs_to_use(str(teacher)).digest == made.digest and not draft_of(made.path).exists()
    changed(teacher)
    with locked(reading=[checkpoint]), pytest.raises(UsageError, match="another mmcompress is running"):
        graphs_to_use(str(teacher))


def test_commands_without_out_keep_what_they_convert_in_a_cache(
    cli: Cli, tmp_path: Path, teacher: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    image = next(photos.iterdir())

    def shares() -> Any:
        done = cli("classify", teacher, image, "--labels", "red,blue", "--json")
        assert done.code == 0 and str(tmp_path / "cache") in done.err, done.err
        return json.loads(done.out.splitlines()[-1]), done.err

    first, log = shares()
    assert log.count("running") == 2 and f"{teacher} becomes ONNX graphs first" in " ".join(log.split())
    second, log = shares()
    assert first == second and log.count("reused") == 2
    changed(teacher)
    third, log = shares()
    assert third != first, log
    assert cli("search", teacher, "red", "--images", photos).code == 0
    looked = cli("inspect", teacher, "--json")
    assert json.loads(looked.out.splitlines()[-1])["kind"] == "checkpoint"
    assert "becomes a checkpoint first" in " ".join(looked.err.split())


@pytest.mark.parametrize(
    ("command", "arguments", "what"),
    [
        ("classify", ("nowhere.png", "--labels", "a,b"), "there is no image nowhere.png"),
        ("classify", ("{image}", "--labels", ","), "there are no labels"),
        ("classify", ("{image}", "--labels", "cat"), "'cat' is the only label"),
        ("classify", ("{image}", "--labels", "cat, cat"), "give at least two labels"),
        ("classify", ("{image}", "--labels", "a,b", "--template", "a {x} {}"), "has a place {x}"),
        ("classify", ("{image}", "--labels", "a,b", "--backend", "openvin"), "there is no backend 'openvin'"),
        ("classify", ("{image}", "--labels", "a,b", "--backend", "tensorrt"), "tensorrt runs engines"),
        ("search", ("red", "--images", "nowhere"), "there is no folder nowhere"),
        ("search", ("red", "--images", ".", "--top", "0"), "--top 0 asks for no results"),
        ("classify", ("{text}", "--labels", "a,b"), "text.jpg: an image cannot be decoded"),
        ("search", ("red", "--images", "{texts}"), "has no image that can be read (1 files tried)"),
    ],
)
def test_a_question_without_an_answer_converts_nothing(
    cli: Cli,
    tmp_path: Path,
    coloured_squares: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    arguments: tuple[str, ...],
    what: str,
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "text.jpg").write_text("no image")
    named = {"{image}": str(coloured_squares / "00.png"), "{texts}": str(tmp_path / "texts")}
    named["{text}"] = str(tmp_path / "texts" / "text.jpg")
    done = cli(command, "demo:teacher", *(named.get(word, word) for word in arguments))
    assert done.code == (4 if "{text}" in arguments else 2), done.err
    assert what in " ".join(done.err.split()) and not (tmp_path / "cache").exists(), done.err


def test_a_teacher_is_exported_in_the_precision_that_is_asked_for(cli: Cli, tmp_path: Path, teacher: Path) -> None:
    done = cli("export", teacher, "--precision", "fp16", "--out", tmp_path / "half")
    assert done.code == 0, done.err
    assert {graph.precision for graph in Artifact.open(tmp_path / "half").manifest.graphs} == {"fp16"}
    done = cli("export", tmp_path / "half-checkpoint", "--precision", "int8", "--out", tmp_path / "i")
    assert done.code == 2 and "is not quantized" in done.err


@pytest.mark.parametrize("opset", [30, 99])
def test_an_opset_that_nothing_here_knows_is_refused_before_anything_is_converted(
    cli: Cli, tmp_path: Path, teacher: Path, opset: int
) -> None:
    done = cli("export", teacher, "--opset", opset, "--out", tmp_path / "o")
    assert (done.code, [*tmp_path.glob("o*")]) == (2, []), done.err
    newest = int(re.search(r"give --opset (\d+) or less", " ".join(done.err.split()))[1])  # type: ignore[index]
    made = cli("export", teacher, "--opset", newest, "--out", tmp_path / "o")
    assert made.code == 0, made.err


def test_embeddings_of_another_teacher_are_refused(
    cli: Cli, tmp_path: Path, teacher: Path, coloured_squares: Path
) -> None:
    data = ("--data", coloured_squares)
    assert cli("embed", "--teacher", teacher, *data, "--out", tmp_path / "e").code == 0
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    student = ("--student", "inherit:0.5", "--optimizer-steps", "1", "--optimizer-batch", "8")
    asked = ("distill", *data, "--embeddings", tmp_path / "e", *student)
    same = cli(*asked, "--teacher", other, "--out", tmp_path / "s")
    assert same.code == 0, same.err
    changed(other)
    done = cli(*asked, "--teacher", other, "--out", tmp_path / "t")
    assert done.code == 2 and "are of the teacher" in done.err
    done = cli(*asked, "--embed-views", "3", "--out", tmp_path / "u")
    assert done.code == 2 and "embed.views is a key of embed, which has nothing to do here: --embeddings" in done.err


@pytest.mark.parametrize(
    ("source", "what", "hint"),
    [
        ("nowhere", "nowhere is not an artifact: there is no such folder", "folder that mmcompress wrote"),
        ("vit-b33", "vit-b33 is not an artifact", "did you mean 'vit-b32'?"),
        ("./nowhere/deep", "is not an artifact: there is no such folder", "mmcompress wrote"),
        ("empty", "empty is not an artifact: it has no manifest.json, and no config.json", "Hugging Face format"),
        ("runs/nowhere", "runs/nowhere is not an artifact: there is no such folder", "mmcompress wrote"),
        ("no.py:function", "there is no Python file no.py", "file.py:function"),
        ("demo:nobody", "nothing that ships with mmcompress is called 'demo:nobody'", "did you mean"),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "prune", "verdict", "drift", "bench", "classify", "inspect", "shrink"])
def test_a_source_that_is_none_is_refused_at_once(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, source: str, what: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    for name in ("empty", "runs"):
        Path(name).mkdir()
    rest = {
        "classify": ("x.png", "--labels", "a,b"),
        "inspect": (),
        "bench": ("--out", "o/x"),
    }.get(command, ("--data", "demo:val", "--out", "o/x"))
    done = cli(command, source, *rest)
    assert done.code == 2 and what in done.err and "Traceback" not in done.err, done.err
    assert hint in done.err or source == "demo:nobody"
    assert not Path("o").exists() and not Path("cache").exists()


def test_an_artifact_of_a_wrong_kind_is_named(cli: Cli, tmp_path: Path, teacher: Path, coloured_squares: Path) -> None:
    assert cli("export", teacher, "--precision", "fp32", "--out", tmp_path / "onnx").code == 0
    done = cli("prune", tmp_path / "onnx", "--data", coloured_squares, "--out", tmp_path / "p")
    assert done.code == 2 and "cannot be pruned: a graph has no blocks" in done.err
    done = cli("quantize", tmp_path / "onnx", "--smooth", "0.5", "--data", coloured_squares, "--out", tmp_path / "q")
    assert done.code == 2 and "smooth is a key of quantize, which has nothing to do here" in done.err
    done = cli("qat", teacher, "--out", tmp_path / "q")
    assert done.code == 2 and "quantize it first: mmcompress quantize" in done.err


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("vit-b32", "vit-b32"),
        ("openai/clip-vit-base-patch32", "clip-vit-base-patch32"),
        ("open_clip:ViT-B-32/openai", "ViT-B-32-openai"),
        ("demo:teacher", "teacher"),
        ("a/b.py:mine", "a-b.py-mine"),
    ],
)
def test_sources_have_names(source: str, name: str) -> None:
    assert name_of(source) == name


def test_sources_of_one_name_are_told_apart_from_all_others() -> None:
    assert names_of(["x", "x", "y"]) == ["x-0", "x-1", "y"]
    assert names_of(["x", "x", "x-1"]) == ["x-0", "x-2", "x-1"]


def test_what_cannot_be_a_checkpoint_is_quantized_as_its_graphs(
    cli: Cli, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ROUND_S": 0.002, "SCREENING_ROUNDS": 4, "ROUNDS": 4}.items():
        monkeypatch.setattr(contest, name, value)
    convolutions = f"{Path(__file__).parents[1] / 'worlds/conv_teacher.py'}:teacher"
    asked = ("quantize", convolutions, "--data", photos, "--out", tmp_path / "q", *FEW)
    done = cli(*asked)
    assert done.code == 0, done.err
    made = Artifact.open(tmp_path / "q")
    assert (made.manifest.stage, made.manifest.facts["texts"]) == ("quantize-graphs", SENTENCES)
    assert made.manifest.parents["graphs"] == Artifact.open(tmp_path / "q-teacher").digest
    assert cli(*asked).err.count("reused") == 2
    judged = cli("verdict", made.path, "--data", photos, "--out", tmp_path / "v", "--seconds", "0.01")
    assert judged.code == 0, judged.err
    done = cli("prune", convolutions, "--data", photos, "--out", tmp_path / "p")
    assert done.code == 2 and "cannot be pruned: it is of no family whose blocks mmcompress knows" in done.err
    target = ("--target-latency", "0.5x", "--backend", "onnxruntime")
    done = cli("shrink", convolutions, "--data", photos, "--out", tmp_path / "s", *target)
    assert done.code == 2 and "cannot be pruned" in done.err and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "asked",
    [["quantize"], ["verdict"], ["drift", "demo:teacher"], ["shrink", "--validation", "PHOTOS", "--test", "PHOTOS"]],
    ids=lambda words: words[0],
)
def test_a_place_inside_the_photos_is_refused_before_anything_is_converted(
    cli: Cli, teacher: Path, photos: Path, asked: list[str]
) -> None:
    before = sorted(photos.rglob("*"))
    more = [photos if word == "PHOTOS" else word for word in asked[1:]]
    done = cli(asked[0], teacher, *more, "--data", photos, "--out", photos / "q")
    assert done.code == 2 and "lies below" in done.err and "running" not in done.err, done.err
    assert sorted(photos.rglob("*")) == before


def test_a_place_inside_the_data_is_refused_before_a_teacher_is_embedded(
    cli: Cli, tmp_path: Path, teacher: Path, coloured_squares: Path
) -> None:
    """What is made beside OUT is named like the data."""
    data = Path(shutil.copytree(coloured_squares, tmp_path / "p-embeddings"))
    done = cli("prune", teacher, "--data", data, "--mlp-multiple", "8", *FEW, "--out", tmp_path / "p")
    assert done.code == 2 and "running" not in done.err, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my clip", "p-embeddings"]


@pytest.mark.parametrize(
    ("asked", "stranger"),
    [
        (["quantize", "--data", "PHOTOS"], "q-checkpoint"),
        (["verdict", "--data", "PHOTOS"], "q-quantized"),
        (["bench"], "q-sources/my clip"),
        (["export", "--precision", "fp32"], "q"),
    ],
)
def test_a_folder_of_the_user_beside_is_refused_before_anything_is_converted(
    cli: Cli, tmp_path: Path, teacher: Path, photos: Path, asked: list[str], stranger: str
) -> None:
    place = tmp_path / stranger.replace("my clip", name_of(teacher))
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("mine")
    words = [photos if word == "PHOTOS" else word for word in asked[1:]]
    done = cli(asked[0], teacher, *words, "--out", tmp_path / "q")
    assert done.code == 2 and "is not overwritten" in done.err and "running" not in done.err, done.err
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]

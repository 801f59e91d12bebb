"""Everything that can be known is refused before anything is embedded, by commands and by recipes alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clip_world import write_squares, write_teacher
from PIL import Image
from safetensors.torch import load_file, save_file
from shards import picture, png_of
from typer.testing import CliRunner

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.cli.commands import app
from mmcompress.compress.early import check_one_space
from mmcompress.compress.earlyteacher import check_same_teacher
from mmcompress.compress.identity import model_fingerprint
from mmcompress.compress.openclip import check_open_clip_weights
from mmcompress.errors import CorruptInputError, MissingRequirementError, MMCompressError, UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline import run, standalone
from mmcompress.pipeline.converted import graphs_to_use
from mmcompress.pipeline.shrinking import Wish, shrink

OWN = "def build(): raise SystemExit('it ran')\n"


def no_stage(*_: object) -> None:
    raise AssertionError("a stage ran")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "_made_or_reused", no_stage)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_squares(tmp_path)
    write_teacher(tmp_path / "teacher")
    write_teacher(tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    config = json.loads((write_teacher(tmp_path / "other") / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "model_type": "siglip2"}))
    (tmp_path / "own.py").write_text(OWN)
    shutil.copytree(tmp_path / "teacher", tmp_path / "unknown")
    (tmp_path / "unknown" / "config.json").write_text(json.dumps({**config, "model_type": "clap9000"}))
    return tmp_path


MISTAKES = [
    ("teacher", {"student.source": "vit-s61"}, "unknown student 'vit-s61'"),
    ("teacher", {"student.source": "vit-s16", "student.image_size": 100}, "image_size 100 is not a multiple"),
    ("teacher", {"student.source": "vit-s16", "student.image_size": 0}, "image_size 0 is no side of an image"),
    ("teacher", {"student.source": "inherit:1.5"}, "above 0 and up to 1"),
    ("teacher", {"student.source": "inherit:0.001"}, "too small to inherit"),
    ("teacher", {"student.source": "timm/no-such-tower"}, "the student 'timm/no-such-tower' .* is not cached here"),
    ("teacher", {"student.source": "vit-s16", "student.tokenizer": "elsewhere"}, "teacher has its own"),
    ("own.py:build", {"student.source": "vit-s16", "student.tokenizer": "no/such"}, "no/such.* is not cached here"),
    ("none", {"student.source": "vit-s16"}, "no teacher folder"),
    ("other", {"student.source": "vit-s16"}, "NaFlex"),
    ("unknown", {"student.source": "vit-s16"}, "does not know the model_type 'clap9000'"),
    ("own.py:build", {"student.source": "vit-s16"}, "no Hugging Face folder to take a tokenizer from"),
    ("own.py:bild", {"student.source": "vit-s16"}, "has no function 'bild'"),
]


@pytest.mark.parametrize(("teacher", "keys", "what"), MISTAKES)
def test_a_command_refuses_before_it_embeds(world: Path, teacher: str, keys: dict[str, object], what: str) -> None:
    given = {"teacher.source": str(world / teacher), "data.train": str(world / "squares-00000.tar"), **keys}
    with pytest.raises(MMCompressError, match=what):
        standalone.distill(world / "out", given)


@pytest.mark.parametrize(("teacher", "keys", "what"), MISTAKES)
def test_a_recipe_refuses_before_its_first_stage(world: Path, teacher: str, keys: dict[str, object], what: str) -> None:
    lines = [f"{key.removeprefix('student.')} = {json.dumps(value)}" for key, value in keys.items()]
    recipe = world / "recipe.toml"
    recipe.write_text(
        f'[data]\ntrain = "{world / "squares-00000.tar"}"\n[teacher]\nsource = "{world / teacher}"\n'
        + "\n".join(["[student]", *lines, "[[stage]]", 'run = "embed"', "[[stage]]", 'run = "distill"', ""])
    )
    with pytest.raises(MMCompressError, match=what):
        standalone.run(str(recipe), world / "run")


@pytest.mark.parametrize(
    ("student", "stage", "what"),
    [
        ("mnv4-s-64", 'run = "prune"\nbatch = 8\nsparsity = "2:4"', "2:4 is of Linears"),
        ("mnv4-s-64", 'run = "prune"\nbatch = 8\ntarget_macs = 0.001', "cannot be pruned to 0.001x: the floor is"),
        ("mnv4-hm", 'run = "prune"\nbatch = 8\nwidth = 0.5', "mobile attention"),
        ("vit-t8-64", 'run = "prune"\nbatch = 8\nchannel_multiple = 8', "is of convolutional image towers"),
        ("inherit:0.5", 'run = "prune"\nbatch = 8\nmlp_multiple = 1000', "mlp_multiple"),
        ("mnv4-s-64", 'run = "quantize"\nkeep = ["image.blocks.99.expand"]', "image.blocks.99.expand"),
    ],
)
def test_a_recipe_knows_its_student_before_its_first_stage(world: Path, student: str, stage: str, what: str) -> None:
    recipe = world / "recipe.toml"
    head = f'[data]\ntrain = "{world / "squares-00000.tar"}"\n[teacher]\nsource = "{world / "teacher"}"\n'
    stages = f'[[stage]]\nrun = "embed"\n[[stage]]\nrun = "distill"\noptimizer = {{batch = 8}}\n[[stage]]\n{stage}\n'
    recipe.write_text(f'{head}[student]\nsource = "{student}"\n{stages}')
    with pytest.raises(UsageError, match=what):
        standalone.run(str(recipe), world / "run")


@pytest.mark.parametrize("name", ["photos", "photos/0.png"])
def test_what_is_no_model_at_all_is_not_exported(world: Path, name: str) -> None:
    (world / "photos").mkdir()
    (world / "photos" / "0.png").write_bytes(picture())
    with pytest.raises(UsageError, match=r"is no model: it has no config\.json"):
        standalone.export(str(world / name), world / "out")


def test_training_begins_with_a_preset(world: Path) -> None:
    recipe = world / "recipe.toml"
    recipe.write_text(f'[data]\ntrain = "{world / "squares-00000.tar"}"\n[[stage]]\nrun = "train"\n')
    for student, what in (("vit-s61", "unknown student"), ("inherit:0.5", "inherits from no teacher")):
        with pytest.raises(UsageError, match=what):
            standalone.train(str(recipe), world / "out", {"student.source": student})


def test_embeddings_of_another_teacher_are_refused(tmp_path: Path) -> None:
    write_teacher(tmp_path / "a")
    write_teacher(tmp_path / "b", 1)
    cached = embedded(tmp_path, tmp_path / "a")
    check_same_teacher(str(tmp_path / "a"), cached)
    check_same_teacher(f"{tmp_path}/b/../a", cached)
    given = {"teacher.source": str(tmp_path / "b"), "student.source": "vit-s16", "data.train": "demo:train"}
    with pytest.raises(UsageError) as caught:
        standalone.distill(tmp_path / "o", given, embeddings=tmp_path / "e")
    assert str(tmp_path / "a") in caught.value.what and str(tmp_path / "b") in caught.value.what
    with pytest.raises(UsageError, match="are of the teacher"):
        standalone.prune(tmp_path / "b", tmp_path / "o", {"data.train": "demo:train"}, embeddings=tmp_path / "e")


def embedded(folder: Path, teacher: Path) -> Artifact:
    given = {"teacher.source": str(teacher), "data.train": str(write_squares(folder))}
    return standalone.embed(folder / "e", given)


def test_embeddings_of_weights_that_changed_in_place_are_refused(tmp_path: Path) -> None:
    cached = embedded(tmp_path, write_teacher(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "moved")
    check_same_teacher(str(tmp_path / "moved"), cached)
    check_same_teacher(str(tmp_path / "a"), cached)  # not here any more: its name is all there is
    write_teacher(tmp_path / "a", 1)
    for given in ({"teacher.source": str(tmp_path / "a")}, {}):
        with pytest.raises(UsageError, match="has changed since the embeddings") as caught:
            standalone.distill(tmp_path / "o", {**given, "student.source": "vit-s16"}, embeddings=cached.path)
        assert "embed it again" in caught.value.hint
    with pytest.raises(UsageError, match="has changed since"):
        standalone.prune(tmp_path / "a", tmp_path / "o", {}, embeddings=cached.path)


def test_a_name_and_its_alias_are_one_teacher(tmp_path: Path) -> None:
    config, parents = {"teacher": {"source": "vit-b32"}}, {"teacher": model_fingerprint("vit-b32")}
    with Artifact.create(
        tmp_path / "e", kind=Kind.EMBEDDINGS, stage="embed", key="k", config=config, parents=parents
    ) as draft:
        (draft.path / "x").write_bytes(b"1")
    for name in ("vit-b32", "openai/clip-vit-base-patch32"):
        check_same_teacher(name, Artifact.open(tmp_path / "e"))


@pytest.mark.parametrize(
    ("stages", "data", "what"),
    [
        (["embed", "drift"], {"test": "none.tar"}, "there is no none.tar"),
        (["embed", "drift"], {"test": "demo:test", "labels": "none.txt"}, "there is no file none.txt"),
        (["convert", "quantize"], {"labels": "one.txt"}, "lists one label, 'cat', which every image gets"),
        (["convert", "quantize"], {"labels": "empty.txt"}, "lists no labels"),
        (["convert", "drift"], {"test": "demo:test", "templates": "one.txt"}, "has no place for the label"),
    ],
)
def test_what_later_stages_read_is_looked_at_first(
    world: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str], data: dict[str, str], what: str
) -> None:
    monkeypatch.chdir(world)
    Path("one.txt").write_text("cat\n")
    Path("empty.txt").write_text("\n")
    given = {"train": "squares-00000.tar", **data}
    lines = ["[data]", *(f'{key} = "{value}"' for key, value in given.items()), "[teacher]", 'source = "teacher"']
    Path("recipe.toml").write_text("\n".join([*lines, *(f'[[stage]]\nrun = "{name}"' for name in stages), ""]))
    with pytest.raises(MMCompressError, match=what):
        standalone.run("recipe.toml", world / "run")
    assert not (world / "run").exists()


@pytest.mark.parametrize("command", ["quantize", "verdict", "drift", "bench"])
def test_a_backend_that_is_not_here_is_refused_before_a_teacher_is_converted(world: Path, command: str) -> None:
    given: dict[str, object] = {} if command == "bench" else {f"data.{'test' if command == 'drift' else 'train'}": "-"}
    if command == "bench":
        given["backends"] = ["tensorrt"]
    elif command != "quantize":
        given["backend"] = "tensorrt"
    sources = [world / "teacher"] if command in ("bench", "drift") else world / "teacher"
    if command == "quantize":
        arguments = ["quantize", str(sources), "--data", "-", "--out", str(world / "out"), "--backend", "tensorrt"]
        assert isinstance(CliRunner().invoke(app, arguments).exception, MissingRequirementError)
        return
    with pytest.raises(MissingRequirementError, match="tensorrt"):
        getattr(standalone, command)(sources, world / "out", given)


def test_damaged_photos_are_found_before_a_teacher_is_converted(world: Path) -> None:
    """A text that is called .jpg, a download that broke off, and a PNG without pixels, 50 of 160."""
    photos, teacher, out = world / "photos", str(world / "teacher"), world / "o"
    photos.mkdir()
    for number in range(160):
        whole = picture(number)
        bad = (b"<html>not found</html>", whole[: len(whole) // 2], png_of(16, 16))[number % 3]
        (photos / f"{number:03d}.jpg").write_bytes(bad if number < 50 else whole)
    train, test = {"data.train": str(photos)}, {"data.test": str(photos)}
    commands: list[Callable[[], object]] = [
        lambda: standalone.embed(out, {"teacher.source": teacher, **train}),
        lambda: standalone.quantize(teacher, out, train),
        lambda: standalone.verdict(teacher, out, train),
        lambda: standalone.verdict(teacher, out, {"data.train": "demo:train", "data.validation": str(photos)}),
        lambda: standalone.prune(teacher, out, {**train, "batch": 32}),
        lambda: standalone.drift([teacher], out, test),
        lambda: shrink(teacher, out, Wish("demo:train", validation="demo:val", test=str(photos))),
    ]
    for command in commands:
        with pytest.raises(CorruptInputError, match=r"of 160 items cannot be read, more than 5%") as caught:
            command()
        assert "max_bad_fraction" in caught.value.hint
    assert not any(place.name.startswith("o") and place.name != "other" for place in world.iterdir() if place.is_dir())


def broken(folder: Path, form: str) -> Path:
    """A teacher with one weight that is no number, in a form that transformers reads."""
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_model.encoder.layers.3.mlp.fc2.weight"][1, 2] = float("nan" if form != "infinite" else "inf")
    half = {name: tensor.half() if form == "half" else tensor for name, tensor in tensors.items()}
    (folder / "model.safetensors").unlink()
    if form == "pickle":
        torch.save(half, folder / "pytorch_model.bin")
    elif form == "shards":
        names = sorted(half)
        for number, part in enumerate((names[::2], names[1::2])):
            save_file({name: half[name] for name in part}, folder / f"model-{number}.safetensors", {"format": "pt"})
        listed = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    else:
        save_file(half, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("form", ["plain", "infinite", "half", "pickle", "shards"])
def test_weights_that_are_no_numbers_are_found_before_anything_is_loaded(world: Path, form: str) -> None:
    teacher = str(broken(world / "teacher", form))
    data = str(world / "squares-00000.tar")
    commands: list[Callable[[], object]] = [
        lambda: standalone.embed(world / "o", {"teacher.source": teacher, "data.train": data}),
        lambda: standalone.distill(
            world / "o", {"teacher.source": teacher, "data.train": data, "student.source": "vit-t16"}
        ),
        lambda: standalone.convert(teacher, world / "o"),
        lambda: standalone.export(teacher, world / "o"),
        lambda: standalone.export(teacher, world / "o", {"precisions": ["fp16"]}),
        lambda: standalone.quantize(teacher, world / "o", {"data.train": data}),
        lambda: standalone.prune(teacher, world / "o", {"data.train": data, "batch": 32}),
        lambda: standalone.drift([teacher], world / "o", {"data.test": data}),
        lambda: standalone.bench([teacher], world / "o", {}),
        lambda: graphs_to_use(teacher),
    ]
    for command in commands:
        with pytest.raises(CorruptInputError, match=r"'vision_model.encoder.layers.3.mlp.fc2.weight' has numbers that"):
            command()


def test_open_clips_weights_are_looked_at_where_they_lie(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.tensor([float("nan")])}, tmp_path / "open_clip_model.safetensors")
    torch.save({"state_dict": {"module.b": torch.tensor([float("inf")])}}, tmp_path / "w.pt")
    for source, what in (
        (f"open_clip:local-dir:{tmp_path}", "'b' has numbers"),
        (f"open_clip:ViT-B-32/{tmp_path / 'w.pt'}", "'module.b' has numbers"),
    ):
        with pytest.raises(CorruptInputError, match=what):
            check_open_clip_weights(source)
    check_open_clip_weights("open_clip:ViT-B-32/openai")


def test_a_loss_without_weight_is_nothing_to_learn(world: Path) -> None:
    given = {"teacher.source": str(world / "teacher"), "data.train": "-", "student.source": "vit-s16"}
    with pytest.raises(UsageError, match="nothing to learn"):
        standalone.distill(world / "out", {**given, "cosine": 0.0, "relational": 0.0, "affinity": 0.0})


@pytest.mark.parametrize("term", ["contrastive", "interactive"])
def test_what_needs_captions_is_not_learned_from_photos_alone(world: Path, term: str) -> None:
    (world / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(world / "photos" / "a.png")
    given = {"teacher.source": str(world / "teacher"), "data.train": str(world / "photos"), "student.source": "vit-s16"}
    with pytest.raises(UsageError, match="photos alone have none"):
        standalone.distill(world / "out", {**given, term: 1.0})


def test_a_checkpoint_of_another_width_learns_nothing_from_a_teacher(tmp_path: Path) -> None:
    model = DualEncoderConfig.model_validate(
        {
            "embed_dim": 16,
            "image": {"width": 8, "head_dim": 4, "heads": (2,), "mlp": (8,), "image_size": 16, "patch": 8},
            "text": {
                "width": 8,
                "head_dim": 4,
                "heads": (2,),
                "mlp": (8,),
                "vocab": 9,
                "context": 4,
                "eos_token_id": 1,
            },
        }
    )
    with Artifact.create(tmp_path / "c", kind=Kind.CHECKPOINT, stage="distill", key="k") as draft:
        (draft.path / "x").write_bytes(b"1")
        draft.model = model
    for width in (16, 24):
        with Artifact.create(tmp_path / f"e{width}", kind=Kind.EMBEDDINGS, stage="embed", key="k") as draft:
            (draft.path / "x").write_bytes(b"1")
            draft.facts = {"dim": width}
    opened = {name: Artifact.open(tmp_path / name) for name in ("c", "e16", "e24")}
    check_one_space({"checkpoint": opened["c"], "embeddings": opened["e16"]})
    with pytest.raises(UsageError, match=r"embeds into 16 dimensions, and the teacher of .*e24 into 24"):
        check_one_space({"checkpoint": opened["c"], "embeddings": opened["e24"]})


def test_a_share_below_the_floor_is_refused_before_anything_is_embedded(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher")
    given = {"data.train": "demo:train", "target_macs": 0.001}
    with pytest.raises(UsageError, match=r"the macs of the image tower cannot be pruned to 0\.001x: the floor is"):
        standalone.prune(tmp_path / "teacher", tmp_path / "pruned", given)
    assert not (tmp_path / "pruned-embeddings").exists()


def test_a_teacher_of_another_width_is_refused_before_it_is_embedded(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher")
    start = standalone.convert(str(tmp_path / "teacher"), tmp_path / "start")
    given = {"teacher.source": "demo:teacher", "data.train": "demo:train"}
    with pytest.raises(UsageError, match="dimensions, and the teacher"):
        standalone.distill(tmp_path / "recovered", given, checkpoint=start.path)
    alike = {**given, "teacher.source": str(tmp_path / "teacher"), "project": True}
    with pytest.raises(UsageError, match="nothing to project: student and teacher both embed"):
        standalone.distill(tmp_path / "recovered", alike, checkpoint=start.path)
    assert not (tmp_path / "recovered-embeddings").exists()

"""Where foreign input comes in: for each door good input, how it may be spoiled, and the command or function behind it.

A door ends in the result, or in an `MMCompressError`. Anything else that it raises is a fault.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import report_run
import shards
import tiny_clip
from toy_model import SIDE, image_onnx, make_model

from mmcompress.artifact import Manifest, hash_file
from mmcompress.errors import MMCompressError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CODES = {0, 1, 2, 3, 4}
"""How a command that was asked for something may end: README, exit codes."""


@dataclass(frozen=True)
class Door:
    name: str
    kind: str
    """`bytes`, or `document` for what is written by `write`."""
    good: Callable[[Path], Any]
    """Makes what lies around in a folder; returns the good input, bytes or a document."""
    enter: Callable[[Path, Any], None]
    """Goes in with what may be spoiled."""


def command(*arguments: object) -> None:
    """`mmcompress ARGUMENTS` in this process, its prints thrown away; its exit code is one that we document."""
    from mmcompress.cli.main import main

    aside = io.StringIO()
    asked = mock.patch.object(sys, "argv", ["mmcompress", *map(str, arguments)])
    with asked, contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside):
        try:
            main()
        except SystemExit as ended:
            assert ended.code in CODES, (ended.code, aside.getvalue()[-500:])


def sealed(folder: Path, edit: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """The artifact's manifest made to fit its files again, as a hostile sender would."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body.pop("seal")
    edit(body)
    for name, entry in body["files"].items():
        entry.update(sha256=hash_file(folder / name), bytes=(folder / name).stat().st_size)
    manifest = Manifest.model_validate(body)
    body["digest"] = manifest.compute_digest()
    manifest = Manifest.model_validate(body)
    path.write_text(json.dumps({**manifest.model_dump(mode="json", by_alias=True), "seal": manifest.compute_seal()}))


def fresh(folder: Path, *names: str) -> None:
    """Outputs of the try before are gone."""
    for name in names:
        path = folder / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


# Recipes and what is said on the command line


def demo_recipe(folder: Path) -> dict[str, Any]:
    from mmcompress.pipeline.standalone import recipe_path

    return tomllib.loads(recipe_path("demo").read_text())


def plan_tables(folder: Path, tables: Any) -> None:
    from mmcompress.pipeline.plan import plan
    from mmcompress.pipeline.recipe import recipe_of

    if isinstance(tables, dict):
        recipe = recipe_of(tables, "r.toml")
        plan(recipe, {table.name: folder / "runs" / table.name for table in recipe.stages}, "r.toml")


def plan_text(folder: Path, text: bytes) -> None:
    from mmcompress.pipeline.recipe import read_recipe

    (folder / "r.toml").write_bytes(text)
    plan_tables(folder, read_recipe(folder / "r.toml"))


def assigned(folder: Path, said: bytes) -> None:
    from mmcompress.pipeline.recipe import parse_assignments, recipe_of

    words = said.decode("utf-8", "surrogateescape").split("\n")
    recipe_of(demo_recipe(folder), "demo", parse_assignments(words))


SAID = b"\n".join(
    (b"distill.optimizer.lr=0.001", b"prune.mlp=0.4", b"data.workers=2", b"quantize.smooth=[0.5]", b"teacher.source=x")
)
RECIPE = b"""
[data]
train = "demo:train"
[teacher]
source = "demo:teacher"
[student]
source = "vit-t8-64"
[[stage]]
run = "embed"
[[stage]]
run = "distill"
optimizer = { lr = 0.001, steps = 3 }
"""


# Artifacts


def run_folder(folder: Path) -> Path:
    report_run.make_run(folder / "run")
    return folder / "run"


def manifest_of(folder: Path) -> Any:
    return json.loads((run_folder(folder) / "int8" / "manifest.json").read_text())


def inspected(folder: Path, body: Any) -> None:
    """Sealed where what is left is a manifest at all."""
    place = folder / "run" / "int8"
    (place / "manifest.json").write_text(json.dumps(body))
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError):
        sealed(place)
    command("inspect", place)
    command("inspect", place, "--json")


def measured(name: str) -> tuple[Callable[[Path], Any], Callable[[Path, Any], None]]:
    def good(folder: Path) -> Any:
        return json.loads((run_folder(folder) / name / f"{name}.json").read_text())

    def enter(folder: Path, document: Any) -> None:
        fresh(folder, "report")
        (folder / "run" / name / f"{name}.json").write_text(json.dumps(document))
        sealed(folder / "run" / name)
        command("report", folder / "run", "--out", folder / "report")

    return good, enter


def report_document(folder: Path) -> Any:
    command("report", run_folder(folder), "--out", folder / "report")
    return json.loads((folder / "report" / "report.json").read_text())


def checked_report(folder: Path, document: Any) -> None:
    from mmcompress.report.checking import read_report
    from mmcompress.report.pages import html_page, markdown_page

    (folder / "r.json").write_text(json.dumps(document))
    command("check", folder / "r.json", "--max", "p50_ms=2", "--max-drop", "i2t_r10=0.01", "--json")
    found = read_report(folder / "r.json")
    html_page(found)
    markdown_page(found)


def packed(folder: Path) -> bytes:
    command("pack", run_folder(folder) / "engine-int8", "--out", folder / "good.mmpack")
    return (folder / "good.mmpack").read_bytes()


def unpacked(folder: Path, content: bytes) -> None:
    fresh(folder, "unpacked")
    (folder / "p.mmpack").write_bytes(content)
    command("inspect", folder / "p.mmpack")
    command("unpack", folder / "p.mmpack", "--out", folder / "unpacked")


# Data


def good_shard(folder: Path) -> bytes:
    return shards.shard(folder / "good.tar", 3).read_bytes()


def shard_read(folder: Path, content: bytes) -> None:
    (folder / "s.tar").write_bytes(content)
    command("data", "stats", folder / "s.tar", "--json")


def good_table(folder: Path) -> bytes:
    (folder / "a.jpg").write_bytes(shards.picture(0))
    (folder / "b.png").write_bytes(shards.picture(1, kind="PNG"))
    return b'filepath,title\na.jpg,"a red, square"\nb.png,a blue one\n'


def table_read(folder: Path, content: bytes) -> None:
    (folder / "t.csv").write_bytes(content)
    command("data", "stats", folder / "t.csv", "--json")


def picture_of(kind: str) -> Callable[[Path], bytes]:
    return lambda _: shards.picture(3, kind=kind)


def decoded(folder: Path, content: bytes) -> None:
    from mmcompress.artifact import Preprocessing
    from mmcompress.data import decode

    with contextlib.suppress(ValueError):  # which readers count as damage
        decode(content, Preprocessing(size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3))


def listed(read: str) -> Callable[[Path, bytes], None]:
    def enter(folder: Path, content: bytes) -> None:
        from mmcompress.data import layout

        (folder / "list.txt").write_bytes(content)
        getattr(layout, read)(str(folder / "list.txt"))

    return enter


# Models


def good_checkpoint(folder: Path) -> Path:
    config = tiny_clip.config_of()
    tiny_clip.write_checkpoint(folder / "checkpoint", config, tiny_clip.tensors_of(tiny_clip.clip_of(config)), None)
    return folder / "checkpoint"


def in_checkpoint(name: str) -> tuple[Callable[[Path], bytes], Callable[[Path, bytes], None]]:
    def good(folder: Path) -> bytes:
        return (good_checkpoint(folder) / name).read_bytes()

    def enter(folder: Path, content: bytes) -> None:
        from mmcompress.artifact import Artifact
        from mmcompress.huggingface import dual_encoder_from_checkpoint
        from mmcompress.runtime.tokenize import load_tokenizer, tokenize

        (folder / "checkpoint" / name).write_bytes(content)
        sealed(folder / "checkpoint")
        artifact = Artifact.open(folder / "checkpoint")
        if name.endswith("safetensors"):
            dual_encoder_from_checkpoint(artifact.path, artifact.model)
        else:
            assert artifact.tokenizer is not None
            tokenize(
                load_tokenizer(artifact.file(artifact.tokenizer.file)), ["a red square", "", "😀"], artifact.tokenizer
            )

    return good, enter


def hugging_face(name: str) -> tuple[Callable[[Path], Any], Callable[[Path, Any], None]]:
    """A JSON file of a teacher's folder."""

    def good(folder: Path) -> Any:
        from tiny_teacher import write_tiny_teacher

        (folder / "teacher").mkdir(exist_ok=True)
        write_tiny_teacher(folder / "teacher")
        return json.loads((folder / "teacher" / name).read_text())

    def enter(folder: Path, document: Any) -> None:
        fresh(folder, "converted")
        (folder / "teacher" / name).write_text(json.dumps(document))
        command("convert", folder / "teacher", "--out", folder / "converted")

    return good, enter


def good_graph(folder: Path) -> bytes:
    return bytes(image_onnx(make_model(), quantized=True).SerializeToString())


def graph_run(folder: Path, content: bytes) -> None:
    import numpy as np

    from mmcompress.manifest import Graph, TensorSpec
    from mmcompress.runtime.backends import open_file

    (folder / "g.onnx").write_bytes(content)
    output = (TensorSpec(name="embedding", shape=(None, make_model().second.shape[1]), dtype="float32"),)
    pixels = (TensorSpec(name="pixels", shape=(None, 3, SIDE, SIDE), dtype="float32"),)
    graph = Graph(file="g.onnx", tower="image", precision="int8", activations="unsigned", inputs=pixels, outputs=output)
    for backend in ("onnxruntime", "openvino"):
        opened = contextlib.suppress(MMCompressError)
        with opened, open_file(folder / "g.onnx", graph, backend, threads=1) as session:
            session.run({"pixels": np.zeros((1, 3, SIDE, SIDE), np.float32)})


HUGGING_FACE = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")
DOORS = (
    Door("recipe", "document", demo_recipe, plan_tables),
    Door(
        "recipe-text",
        "bytes",
        lambda _: RECIPE,
        plan_text,
    ),
    Door("set", "bytes", lambda _: SAID, assigned),
    Door("manifest", "document", manifest_of, inspected),
    *(Door(name, "document", *measured(name)) for name in ("bench", "drift", "bisect")),
    Door("report", "document", report_document, checked_report),
    Door("pack", "bytes", packed, unpacked),
    Door("shard", "bytes", good_shard, shard_read),
    Door("table", "bytes", good_table, table_read),
    *(Door(f"image-{kind.lower()}", "bytes", picture_of(kind), decoded) for kind in ("JPEG", "PNG", "WEBP")),
    Door("labels", "bytes", lambda _: b"a cat\na dog\n", listed("read_labels")),
    Door("templates", "bytes", lambda _: b"a photo of a {c}.\n{}\n", listed("read_templates")),
    Door("weights", "bytes", *in_checkpoint("model.safetensors")),
    Door("tokenizer", "bytes", *in_checkpoint("tokenizer.json")),
    *(Door(f"teacher-{name.removesuffix('.json')}", "document", *hugging_face(name)) for name in HUGGING_FACE),
    Door("graph", "bytes", good_graph, graph_run),
)

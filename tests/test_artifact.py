"""An artifact exists whole or not at all, and damage is found before anything is used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Kind, Manifest


def make(path: Path, text: str = "weights", **metrics: float) -> Artifact:
    with Artifact.create(path, kind=Kind.CHECKPOINT, stage="distill", key="k", config={"a": 1}) as draft:
        (draft.path / "model.bin").write_text(text)
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "note.txt").write_text("note")
        draft.metrics = dict(metrics)
    return Artifact.open(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    assert made.file("sub/note.txt").read_text() == "note"
    assert set(made.manifest.files) == {"model.bin", "sub/note.txt"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"], "no temporary folder is left"


def test_digest_is_of_the_content_not_of_the_measurement(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", seconds=1.0), make(tmp_path / "b" / "a", seconds=2.0)
    assert first.digest == second.digest
    assert make(tmp_path / "c" / "a", text="others").digest != first.digest


@pytest.mark.parametrize("name", ["model.bin", "sub/note.txt", "manifest.json"])
def test_any_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    made = make(tmp_path / "a", seconds=1.0)
    target = made.path / name
    content = bytearray(target.read_bytes())
    position = content.index(b"checkpoint") if name == "manifest.json" else 0
    content[position] ^= 1
    target.write_bytes(content)
    with pytest.raises(CorruptInputError) as caught:
        Artifact.open(made.path)
    assert caught.value.exit_code == 4 and name in str(caught.value)


def test_changed_measurements_are_found(tmp_path: Path) -> None:
    made = make(tmp_path / "a", seconds=1.0)
    manifest = made.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seconds": 1.0', '"seconds": 0.5'))
    with pytest.raises(CorruptInputError, match="changed after it was written"):
        Artifact.open(made.path)


@pytest.mark.parametrize(
    ("fact", "values"),
    [("params", (-1, "1", True, 10**300)), ("macs", (1.5, [])), ("logit_scale", (-1, 0, "7", 1e308)), ("dim", ("24",))],
)
def test_a_fact_that_is_no_number_of_its_kind_is_refused(tmp_path: Path, fact: str, values: tuple[object, ...]) -> None:
    for number, value in enumerate(values):
        place = tmp_path / str(number)
        with Artifact.create(place, kind=Kind.CHECKPOINT, stage="distill", key="k", config={}) as draft:
            draft.facts = {fact: 1}
        path = place / "manifest.json"
        body = json.loads(path.read_text())
        del body["seal"]
        body["facts"] = {fact: value}
        body["digest"] = Manifest.model_validate(body).compute_digest()
        path.write_text(json.dumps({**body, "seal": Manifest.model_validate(body).compute_seal()}))
        with pytest.raises(CorruptInputError, match=rf"manifest\.json: facts\.{fact} is "):
            Artifact.open(place)


def test_nobody_is_told_to_delete_a_folder_that_we_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "My app"}')
    with pytest.raises(CorruptInputError, match="manifest") as caught:
        Artifact.open(tmp_path)
    assert caught.value.hint == "it is not one that mmcompress wrote: give a folder that it did"


def test_a_manifest_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    path = made.path / "manifest.json"
    for depth in (400, 5000):
        facts = '{"a": ' + "[" * depth + "]" * depth + "}"
        body = json.loads(path.read_text())
        path.write_text(json.dumps({**body, "facts": "@"}).replace('"@"', facts))
        with pytest.raises(CorruptInputError, match=r"manifest\.json .*it is nested too deeply"):
            Artifact.open(made.path)
        path.write_text(json.dumps(body))


def test_missing_file_and_wrong_kind_are_named(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    with pytest.raises(UsageError, match="kind 'checkpoint'") as wrong_kind:
        Artifact.open(made.path, Kind.ONNX)
    assert "'onnx'" in wrong_kind.value.hint
    (made.path / "model.bin").unlink()
    with pytest.raises(CorruptInputError, match=r"model\.bin is missing"):
        Artifact.open(made.path)
    with pytest.raises(UsageError, match="there is no such folder"):
        Artifact.open(tmp_path / "nowhere")


def test_a_file_of_a_model_is_no_pack(tmp_path: Path) -> None:
    for name, hint in (
        ("model.mmc", "mmcompress unpack"),
        ("model.safetensors", f"the folder that it lies in: {tmp_path}"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(UsageError, match="it is a file") as caught:
            Artifact.open(tmp_path / name)
        assert hint in caught.value.hint
        (tmp_path / "config.json").write_text("{}")


def test_files_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    (tmp_path / "secret").write_text("weights")
    manifest = made.manifest
    moved = {"../secret": manifest.files["model.bin"]}
    forged = manifest.model_copy(update={"files": moved})
    forged = forged.model_copy(update={"digest": forged.compute_digest()})
    body = forged.model_dump(mode="json", by_alias=True) | {"seal": forged.compute_seal()}
    (made.path / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(CorruptInputError, match="outside of the artifact"):
        Artifact.open(made.path)


def test_every_file_may_be_read_by_whom_the_mask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with Artifact.create(tmp_path / "a", kind=Kind.ONNX, stage="export", key="k") as draft:
            (draft.path / "sub").mkdir()
            for name in ("weights", "sub/weights"):
                (draft.path / name).touch(0o600)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_a_failing_stage_leaves_the_old_artifact(tmp_path: Path) -> None:
    old = make(tmp_path / "a").digest
    with (
        pytest.raises(RuntimeError),
        Artifact.create(tmp_path / "a", kind=Kind.CHECKPOINT, stage="distill", key="k2") as draft,
    ):
        (draft.path / "half").write_text("…")
        raise RuntimeError
    assert Artifact.open(tmp_path / "a").digest == old
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_foreign_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(UsageError, match="is not overwritten"),
        Artifact.create(tmp_path, kind=Kind.CHECKPOINT, stage="distill", key="k"),
    ):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_killed_process_leaves_no_artifact(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from mmcompress.artifact import Artifact, Kind\n"
        "with Artifact.create(sys.argv[1], kind=Kind.CHECKPOINT, stage='s', key='k') as draft:\n"
        "    (draft.path / 'model.bin').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    out = tmp_path / "a"
    died = subprocess.run([sys.executable, "-c", script, str(out)], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    assert not out.exists()
    assert make(out).digest

"""What may be written over: our own artifacts and nothing else, and never an input."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mmcompress import artifact
from mmcompress.artifact import Artifact
from mmcompress.data.excluded import write_list
from mmcompress.drafts import written_whole
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Kind
from mmcompress.measure.explain.picture import save
from mmcompress.pack import pack
from mmcompress.pipeline import single
from mmcompress.places import CACHE, LONGEST_NAME, check_place, inside_folders, writing
from mmcompress.publish import KEY, check_beside, drop_work_of, keep_work_of, tidy, working


def made(path: Path) -> Artifact:
    with Artifact.create(path, kind=Kind.CHECKPOINT, stage="distill", key="k") as draft:
        (draft.path / "weights").mkdir()
        (draft.path / "weights" / "a.bin").write_bytes(b"12345")
    return Artifact.open(path)


@pytest.mark.parametrize(
    "manifest",
    [
        json.dumps({"name": "My app", "icons": []}),
        json.dumps({"schema": 1, "kind": "x", "files": [], "stage": "s", "key": "k", "digest": "d", "seal": "s"}),
        "[]",
        "{",
        "\xff",
    ],
)
def test_a_manifest_of_another_program_is_no_leave_to_replace(tmp_path: Path, manifest: str) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_bytes(manifest.encode("latin-1"))
    (app / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="is not overwritten"):
        made(app)
    assert (app / "thesis.txt").read_text() == "precious" and len(list(app.iterdir())) == 2


@pytest.mark.parametrize("stranger", ["notes.txt", "weights/mine.txt", ".hidden", "more/deep/file"])
def test_a_file_put_into_an_artifact_is_not_deleted(tmp_path: Path, stranger: str) -> None:
    file = made(tmp_path / "a").path / stranger
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(UsageError, match=f"holds '{stranger}', which mmcompress did not write"):
        made(tmp_path / "a")
    assert file.read_text() == "mine"


def a_note(place: Path) -> None:
    (place / "notes.txt").write_text("mine")


def another_folder(place: Path) -> None:
    place.rename(place.with_name("moved"))
    place.mkdir()
    a_note(place)


def a_file(place: Path) -> None:
    place.rename(place.with_name("moved"))
    place.write_text("mine")


def a_link(place: Path) -> None:
    another_folder(place)
    place.rename(place.with_name("theirs"))
    place.symlink_to(place.with_name("theirs"))


@pytest.mark.parametrize("put", [a_note, another_folder, a_file, a_link])
def test_what_comes_to_a_place_while_it_is_made_is_not_deleted(tmp_path: Path, put: Callable[[Path], None]) -> None:
    place = made(tmp_path / "a").path
    with (
        pytest.raises(UsageError, match="was changed while this ran and holds what mmcompress did not write"),
        Artifact.create(place, kind=Kind.CHECKPOINT, stage="distill", key="other"),
    ):
        put(place)
    assert (place / "notes.txt" if place.is_dir() else place).read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_removed_while_it_is_read_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_one, gone = made(tmp_path / "a"), "a was moved or removed while it was being read"
    hashed = artifact.hash_file
    monkeypatch.setattr(artifact, "hash_file", lambda file: (shutil.rmtree(made_one.path), hashed(file)))
    with pytest.raises(CorruptInputError, match=gone):
        Artifact.open(made_one.path)
    with pytest.raises(CorruptInputError, match=gone):
        made_one.remember()
    with pytest.raises(CorruptInputError, match=r"manifest\.json is missing, or was removed while it was being read"):
        artifact.read_manifest(made_one.path / "manifest.json")


def test_a_graph_that_is_removed_while_its_weights_are_looked_for_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, beside = made(tmp_path / "a").path, artifact.files_beside
    graph = SimpleNamespace(file="weights/a.bin")
    verified = artifact._verify_beside
    onnx = SimpleNamespace(graphs=[graph], kind=Kind.ONNX, files={graph.file: None})
    monkeypatch.setattr(artifact, "files_beside", lambda path: (shutil.rmtree(place), beside(path))[1])
    monkeypatch.setattr(artifact, "_verify_beside", lambda path, _: verified(path, onnx))
    with pytest.raises(CorruptInputError, match="a was moved or removed while it was being read"):
        Artifact.open(place)


def test_a_damaged_artifact_of_ours_is_made_again(tmp_path: Path) -> None:
    made(tmp_path / "a")
    (tmp_path / "a" / "weights" / "a.bin").write_bytes(b"damaged")
    (tmp_path / "a" / ".DS_Store").touch()
    assert made(tmp_path / "a").digest


@pytest.mark.parametrize(
    ("out", "where"), [("a", "is"), ("a/b", "lies below"), (".", "lies above"), ("link/a", "is"), ("x/../a", "is")]
)
def test_an_input_is_no_place_for_an_output(tmp_path: Path, out: str, where: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x").mkdir()
    source = made(tmp_path / "run" / "a")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "run")
    with pytest.raises(UsageError, match=f"{where} .*, which is read to make it"):
        check_place(tmp_path / "run" / out, [source.path])
    check_place(tmp_path / "run" / "ab", [source.path])


def test_a_stage_replaces_its_own_work_only(tmp_path: Path) -> None:
    made(tmp_path / "a")
    check_place(tmp_path / "a", stage="distill")
    with pytest.raises(UsageError, match="a holds what distill made, and export would replace it"):
        check_place(tmp_path / "a", stage="export")
    check_place(tmp_path / "b", stage="export")


@pytest.mark.parametrize("out", ["", ".", "..", "a/.."])
def test_a_place_needs_a_name(out: str) -> None:
    with pytest.raises(UsageError, match="has no name"):
        check_place(Path(out))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("~nouser/x", "begins with ~nouser"),
        ("n" * 300, "has 300 bytes, and 224 are possible"),
        ("x/" + "é" * 120 + "/y", "has 240 bytes"),
        ("a\0b", "has a zero byte"),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused(out: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_place(Path(out))


def test_a_name_that_is_as_long_as_may_be_can_be_made(tmp_path: Path) -> None:
    made(tmp_path / ("n" * LONGEST_NAME))


def test_a_link_is_no_place(tmp_path: Path) -> None:
    made(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(UsageError, match="is a link") as caught:
        check_place(tmp_path / "link")
    assert str(tmp_path / "a") in caught.value.hint


def test_the_old_artifact_comes_back_where_the_new_one_does_not_stand(tmp_path: Path) -> None:
    digest = made(tmp_path / "a").digest
    (tmp_path / "a").rename(tmp_path / ".a.old")
    (tmp_path / ".a.tmp").mkdir()
    tidy(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and Artifact.open(tmp_path / "a").digest == digest
    (tmp_path / ".a.old").mkdir()
    (tmp_path / ".a.old" / "mine").touch()
    tidy(tmp_path / "a")
    assert (tmp_path / ".a.old" / "mine").exists()


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("x")
    with pytest.raises(UsageError, match=r"lies below .*notes, which is no folder"):
        check_place(tmp_path / "notes" / "a" / "out")


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EROFS, os.strerror(errno.EROFS), "somewhere"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_place_that_takes_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    for place, hint in (
        (tmp_path / "out", "give another --out"),
        (tmp_path / "cache" / "x", f"set {CACHE} to another"),
    ):
        with (
            pytest.raises(UsageError, match=f"{place} cannot be written: (No space|Read-only)") as told,
            writing(place),
        ):
            raise CorruptInputError("a library failed", "mend it") from raised
        assert hint in told.value.hint
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UsageError, match="which is no folder") as told:
        check_place(tmp_path / "cache" / "x")
    assert told.value.hint == f"set {CACHE} to another folder"
    with pytest.raises(ValueError, match="a bug"), writing(tmp_path):
        raise ValueError("a bug")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has a folder in which nothing can be made")
def test_a_folder_in_which_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    place = Path("/proc/out")
    for write in (place.mkdir, lambda: (place / "stage").mkdir(parents=True), lambda: enter(written_whole(place))):
        with pytest.raises(UsageError, match=r"^/proc/out cannot be written: No such file"), writing(place):
            write()
    with pytest.raises(FileNotFoundError), writing(tmp_path / "out"):
        (tmp_path / "a.jpg").read_bytes()


def enter(stream: AbstractContextManager[object]) -> None:
    with stream:
        pass


DYING = """
import os, sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from mmcompress import artifact
from mmcompress.artifact import Artifact
from mmcompress.manifest import Kind
from mmcompress.measure.explain.picture import save
from mmcompress.pack import pack

out = Path(sys.argv[1]) / "a"
calls, last = 0, 0

def counted(call):
    def instead(*given, **named):
        global calls
        calls += 1
        if calls == last:
            os._exit(9)
        return call(*given, **named)
    return instead

def make(content):
    with Artifact.create(out, kind=Kind.CHECKPOINT, stage="distill", key="k") as draft:
        (draft.path / "weights").mkdir()
        for name in ("a", "weights/b"):
            (draft.path / name).write_text(content)
    return Artifact.open(out)

make("old")
before = {name: getattr(os, name) for name in ("fsync", "rename", "mkdir", "unlink", "rmdir")}
moments = 0
while True:
    moments += 1
    if (child := os.fork()) == 0:
        last = moments
        for name, call in before.items():
            setattr(os, name, counted(call))
        make("new")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    if out.exists():
        Artifact.open(out)
    make("old")
    left = os.listdir(out.parent)
    assert left == ["a"], (moments, left)
print(moments)
"""


@pytest.mark.skipif(os.name == "nt", reason="it forks")
def test_a_kill_at_any_call_while_an_artifact_is_replaced(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 12, "moments at which it was killed"


@pytest.mark.parametrize("behind", [False, True], ids=["before the call", "behind it"])
def test_a_signal_at_any_call_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: bool) -> None:
    """As an exception, which is what a signal becomes."""
    calls = last = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == last and not behind:
                raise KeyboardInterrupt
            done = call(*given, **named)
            if calls == last:
                raise KeyboardInterrupt
            return done

        return instead

    for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    while calls >= last:
        last, calls = last + 1, 0
        with suppress(KeyboardInterrupt):
            made(tmp_path / "a")
        assert not (tmp_path / ".a.tmp").exists(), last
    assert last > 8


def test_what_an_interrupted_removal_leaves_is_removed(tmp_path: Path) -> None:
    made(tmp_path / "a")
    for left in ((), ("manifest.json",)):
        (aside := tmp_path / ".a.old").mkdir()
        for name in left:
            (aside / name).write_bytes((tmp_path / "a" / name).read_bytes())
        tidy(tmp_path / "a")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_of_the_name_that_an_artifact_is_moved_to_is_refused_at_once(tmp_path: Path) -> None:
    made(tmp_path / "a")
    (tmp_path / ".a.old").mkdir()
    (tmp_path / ".a.old" / "mine").touch()
    with pytest.raises(UsageError, match=r"\.a\.old exists and mmcompress did not write it"):
        made(tmp_path / "a")
    assert (tmp_path / ".a.old" / "mine").exists() and Artifact.open(tmp_path / "a").digest


@pytest.mark.parametrize("at", ["before anything is done", "while it is removed"])
def test_a_signal_leaves_no_work_that_nothing_goes_on_from(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its artifact stands already, and what led to it is being removed."""
    work, unlink = tmp_path / ".a.work", os.unlink

    def stopped(path: Any, **named: Any) -> None:
        monkeypatch.setattr(os, "unlink", unlink)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), working(work, "one"):
        assert (work / KEY).read_text() == "one"
        if at == "before anything is done":
            raise KeyboardInterrupt
        (work / "state").touch()
        monkeypatch.setattr(os, "unlink", stopped)
    assert not work.exists()


def test_work_to_go_on_from_is_dropped_with_its_mark_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / ".a.work"
    work.mkdir()
    keep_work_of(work, "one")  # an empty one is of a run that was killed before it wrote its mark
    for name in ("state", "mark", "zustand"):
        (work / name).touch()
    removed: list[str] = []
    unlink = os.unlink

    def watched(path: Any, **named: Any) -> None:
        removed.append(Path(path).name)
        unlink(path, **named)

    monkeypatch.setattr(os, "unlink", watched)
    drop_work_of(work, "other")
    assert not removed and work.is_dir(), "it is of another run"
    drop_work_of(work, "one")
    assert removed[-1] == KEY and len(removed) == 4 and not work.exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(UsageError, match="mmcompress did not write it"):
        keep_work_of(tmp_path / "b", "one")
    drop_work_of(tmp_path / "b", "one")
    assert (tmp_path / "b" / "mine").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_somebody_else_keeps_under_the_name_of_a_draft_is_not_touched(tmp_path: Path, kind: str) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes").write_text("mine")
    draft = tmp_path / ".a.tmp"
    if kind == "file":
        draft.write_text("mine")
    elif kind == "folder":
        draft.mkdir()
        (draft / "notes").write_text("mine")
    else:
        draft.symlink_to(tmp_path / "theirs")
    with pytest.raises(UsageError, match=r"\.a\.tmp exists and mmcompress did not write it"):
        made(tmp_path / "a")
    with pytest.raises(UsageError, match=r"\.a\.tmp exists and mmcompress did not write it"):
        check_beside(tmp_path / "a")
    kept = draft if kind == "file" else draft / "notes"
    assert kept.read_text() == "mine" and not (tmp_path / "a").exists()


def test_files_of_one_place_do_not_touch_what_has_the_name_of_a_draft(tmp_path: Path) -> None:
    """A pack, a list and a picture, beside files of every name that was a draft's."""
    made(tmp_path / "a")
    others = [tmp_path / name for name in (".a.mmc.tmp", ".l.tsv", ".p.png.tmp", ".x.draft", ".a.mmc.lock")]
    for other in others:
        other.write_text("mine")
    pack(tmp_path / "a", tmp_path / "a.mmc")
    write_list(tmp_path / "l.tsv", [("a", "b", 0.5)])
    save(Image.new("RGB", (4, 4)), "a cat", tmp_path / "p.png")
    assert [other.read_text() for other in others] == ["mine"] * len(others)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["a", "a.mmc", "l.tsv", "p.png"]
    assert len(list(tmp_path.glob(".*"))) == len(others), "nothing else is left"


def test_what_a_killed_pack_left_is_removed_by_the_next(tmp_path: Path) -> None:
    made(tmp_path / "a")
    code = (
        "import os, signal, sys; from pathlib import Path; from mmcompress import pack\n"
        "pack._take = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "pack.pack(Path(sys.argv[1], 'a'), Path(sys.argv[1], 'p'))"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".*.draft"))) == 1
    pack(tmp_path / "a", tmp_path / "p")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "p"]


def test_folders_that_were_made_for_what_failed_go_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        assert (tmp_path / "there/n/e").is_dir()
        raise UsageError("it cannot be")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(single, "run_stage", refused)
    with pytest.raises(UsageError, match="it cannot be"):
        single.run_single("report", {}, {}, {}, tmp_path / "there/n/e/w")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_folders_that_hold_something_stay_when_work_fails(tmp_path: Path) -> None:
    with suppress(ValueError), inside_folders(tmp_path / "a/b/x", tmp_path / "a/c/y", tmp_path / "d/../z"):
        (tmp_path / "a/c/kept").touch()
        raise ValueError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "c", "kept"]

"""What specifications name, and what changes their fingerprint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmcompress.data.batches import read
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.spec import ACCEPTED, expand, is_stream
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.packaged import packaged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a-00000.tar", "a-00001.tar", "a-00002.tar", "b.tar.gz", ".hidden.tar", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(spec: object) -> list[str]:
    return [Path(place).name for place in expand(str(spec))]


def test_expand_local(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(folder / "a-{00000..00001}.tar") == ["a-00000.tar", "a-00001.tar"]
    assert names(folder / "{b,a-00002}.tar*") == ["b.tar.gz", "a-00002.tar"]
    assert names(folder / "a-*[12].tar") == ["a-00001.tar", "a-00002.tar"]
    assert names(folder) == ["a-00000.tar", "a-00001.tar", "a-00002.tar", "b.tar.gz"]
    assert names(folder / "b.tar.gz") == ["b.tar.gz"]
    monkeypatch.chdir(folder)
    assert expand("a-0*.tar") == ["a-00000.tar", "a-00001.tar", "a-00002.tar"]
    odd = folder / "odd[1]{2}"
    odd.mkdir()
    (odd / "x.tar").touch()
    assert names(odd) == ["x.tar"]
    (folder / "captions.tsv").touch()
    assert names(folder) == ["captions.tsv"]


def test_expand_streams_are_passed_through() -> None:
    assert expand("pipe:cat {a,b}.tar") == ["pipe:cat a.tar", "pipe:cat b.tar"]
    assert expand("memory://host/{0..1}.tar?k=v") == ["memory://host/0.tar?k=v", "memory://host/1.tar?k=v"]
    assert expand("-") == ["-"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("x" * 5000, "cannot be read: File name too long"),
        ("~nouser/x.tar", "there is no ~nouser/x.tar"),
        ("a\0b", "there is no a"),
        ("s/{000000000..999999999}.tar", "name more than 1,000,000 places"),
        ("pipe:cat {000000000..999999999}.tar", "name more than 1,000,000 places"),
    ],
)
def test_what_no_path_can_be_is_a_sentence(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        expand(spec)


def test_expand_packaged() -> None:
    assert names("demo:train") == [f"train-0000{i}.tar" for i in range(4)]
    assert names("demo:val") == ["val-00000.tar"]
    assert names("demo:test") == ["test-00000.tar"]
    assert names("demo:names") == ["names.txt"]
    assert packaged("demo:names").read_text(encoding="utf-8").count("\n") == 1852
    assert packaged("demo:teacher").name == "teacher"


@pytest.mark.parametrize(
    ("spec", "what", "hint"),
    [
        ("{tmp}/none.tar", "there is no {tmp}/none.tar", ACCEPTED),
        (
            "{tmp}/a-{{00002..00003}}.tar",
            "of 2 places that '{tmp}/a-{{00002..00003}}.tar' names 1 are not there: {tmp}/a-00003.tar",
            "fetch them, or take what is there by a pattern: '{tmp}/a-*.tar'",
        ),
        ("{tmp}/z*.tar", "nothing matches {tmp}/z*.tar", ACCEPTED),
        (
            "{tmp}/empty",
            "the folder {tmp}/empty holds neither .tar shards nor a captions.tsv, nor images",
            ACCEPTED,
        ),
        (
            "{tmp}/a-{{0..1.tar",
            "the braces of '{tmp}/a-{{0..1.tar' do not match",
            "for example: 'shards/{{00000..00005}}.tar'",
        ),
        ("", "the data specification is empty", ACCEPTED),
        ("demo:trian", "nothing that ships with mmcompress is called 'demo:trian'", "did you mean 'train'?"),
    ],
)
def test_expand_errors(folder: Path, spec: str, what: str, hint: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UsageError) as caught:
        expand(spec.format(tmp=folder))
    assert caught.value.what == what.format(tmp=folder)
    assert caught.value.hint == (hint if hint is ACCEPTED else hint.format(tmp=folder))
    assert caught.value.exit_code == 2


def test_a_pipe_or_a_device_is_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    for place in ("/dev/zero", str(tmp_path / "a.tar")):
        for look in (expand, fingerprint):
            with pytest.raises(UsageError, match="is a pipe or a device") as refused:
                look(place)
            assert "pipe:cat FILE" in refused.value.hint


def test_fingerprint_is_of_the_content(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("moved") / "x"
    before = fingerprint(str(folder))
    assert len(before) == 64
    assert before == fingerprint(str(folder))
    (folder / "notes.txt").write_text("not data")
    assert before == fingerprint(str(folder))
    pattern = fingerprint(str(folder / "a-{00000..00002}.tar"))
    assert pattern == fingerprint(str(folder / "a-*.tar")) != before
    os.rename(folder, elsewhere)  # noqa: PTH104
    assert before == fingerprint(str(elsewhere))
    shard = elsewhere / "a-00001.tar"
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)
    assert before != fingerprint(str(elsewhere))
    shard.rename(elsewhere / "a-00009.tar")
    assert len({before, pattern, fingerprint(str(elsewhere)), fingerprint(str(elsewhere / "a-*.tar"))}) == 4


def test_fingerprint_of_tables_covers_their_images(tmp_path: Path) -> None:
    (tmp_path / "captions.tsv").write_text("image\tcaption\nx.jpg\tx\n")
    (tmp_path / "x.jpg").write_bytes(b"1")
    first = fingerprint(str(tmp_path))
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").touch()
    assert fingerprint(str(tmp_path)) == first
    table = fingerprint(str(tmp_path / "captions.tsv"))
    (tmp_path / "x.jpg").write_bytes(b"22")
    assert fingerprint(str(tmp_path)) != first
    assert fingerprint(str(tmp_path / "captions.tsv")) != table


def test_fingerprint_of_teachers(tmp_path: Path) -> None:
    symbolic = [
        "vit-l14",
        "openai/clip-vit-base-patch32",
        "open_clip:ViT-B-32/laion2b",
        "https://h/x.tar",
        "pipe:ls",
        "-",
    ]
    assert len({fingerprint(text) for text in symbolic}) == len(symbolic)
    code = tmp_path / "mine.py"
    code.write_text("def teacher(): ...\n")
    first, other = fingerprint(f"{code}:teacher"), fingerprint(f"{code}:another")
    code.write_text("def teacher(): return 1\n")
    assert len({first, other, fingerprint(f"{code}:teacher")}) == 3
    assert fingerprint("demo:train") != fingerprint("demo:val")
    with pytest.raises(UsageError, match="there is no"):
        fingerprint(str(tmp_path / "a-{0..1}.tar"))


def test_import_is_light() -> None:
    code = "import sys, mmcompress.data; print(sorted({'torch', 'webdataset', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("spec", ["*.tar", "pipe*", ".", "[p]ipe:touch*.tar", "{pipe:touch PWNED; cat #,x}.tar"])
def test_a_file_whose_name_is_a_command_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    """A manifest may record a pattern, and somebody else the files beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipe:touch PWNED; cat #.tar").touch()
    if "{" in spec:
        (tmp_path / "x.tar").touch()
    for place in expand(spec):
        assert not is_stream(place) and Path(place).exists()
    with pytest.raises(CorruptInputError):
        list(read(spec))
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("image", ["a.jpg", "cat/a.jpg"])
def test_an_archive_among_images_replaces_none_of_them(tmp_path: Path, image: str) -> None:
    (tmp_path / image).parent.mkdir(exist_ok=True)
    (tmp_path / image).write_bytes(b"")
    assert expand(str(tmp_path))
    (tmp_path / "backup.tar").write_bytes(b"")
    with pytest.raises(
        UsageError, match=rf"holds backup\.tar, .* and images that lie in no shard, {image} say"
    ) as told:
        expand(str(tmp_path))
    assert expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/backup.tar"] and f"'{tmp_path}/*.tar'" in told.value.hint

"""Artifacts: folders with a `manifest.json` that exist whole or not at all.

A stage writes into a hidden sibling folder; when it is done every file is hashed and synced, the manifest is written
and the folder is renamed into place. A reader therefore never sees half an artifact, and `Artifact.open` verifies every
byte before anything is used. Embeddings, indices and shards are as large as the data makes them, so they are verified
as shards are: a file that was read once is read again when it was touched (`digests.py`). The digest covers what the
artifact *is* (kind, stage, config, parents, files), not when or where it was made, so two runs of the same recipe can
be compared by digest.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from mmcompress.architecture import DualEncoderConfig
from mmcompress.besideonnx import files_beside
from mmcompress.digests import remember, sha256_of
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import (
    Figures,
    FileEntry,
    Graph,
    Kind,
    Manifest,
    Preprocessing,
    PromptBank,
    TextProcessing,
    environment,
    hash_file,
)
from mmcompress.places import MANIFEST, check_place, writing
from mmcompress.publish import drafted, swap_in
from mmcompress.strictjson import check_finite, json_bytes, json_from_text, write_json
from mmcompress.wrong import first_wrong

_AS_LARGE_AS_DATA = (Kind.EMBEDDINGS, Kind.INDEX, Kind.SHARDS)


@dataclass(frozen=True)
class Artifact:
    """A verified folder. `path` is where it lies, `manifest` what it says of itself."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def model(self) -> DualEncoderConfig:
        """The sizes of the model in it. Raises UsageError if it holds none of ours."""
        if self.manifest.model is None:
            raise UsageError(f"{self.path} holds no dual encoder of mmcompress", "give a checkpoint that a stage wrote")
        return self.manifest.model

    @property
    def preprocessing(self) -> Preprocessing | None:
        return self.manifest.preprocessing

    @property
    def image_processing(self) -> Preprocessing:
        """How its images are prepared. Raises UsageError where it does not say."""
        if self.preprocessing is None:
            made = "make the checkpoint" if self.manifest.kind is Kind.CHECKPOINT else "export the artifact"
            raise UsageError(f"{self.path} does not say how images are prepared", f"{made} again")
        return self.preprocessing

    @property
    def tokenizer(self) -> TextProcessing | None:
        return self.manifest.tokenizer

    def file(self, name: str) -> Path:
        """Path of a listed file."""
        if name not in self.manifest.files:
            raise UsageError(
                f"the {self.manifest.kind.value} artifact {self.path} has no file {name!r}",
                f"it has: {', '.join(self.manifest.files)}",
            )
        return self.path / name

    def remember(self) -> None:
        """Its writer's last word: every file is as the manifest says, and need not be read to be verified."""
        with _standing(self.path):
            remember({self.path / name: entry.sha256 for name, entry in self.manifest.files.items()})

    def verify(self) -> None:
        """Raise CorruptInputError for any byte that is not as it was written: every file is read, also those that were
        read before and were not touched since. A disk that rots touches nothing."""
        _verify_files(self.path, self.manifest, hash_file)

    def check_unchanged(self) -> None:
        """Raise CorruptInputError if another artifact stands at the path since this one was opened."""
        if not (self.path / MANIFEST).is_file() or read_manifest(self.path / MANIFEST).digest != self.digest:
            raise CorruptInputError(f"{self.path} was replaced while it was being read", "run the command again")

    @staticmethod
    def open(path: str | Path, *kinds: Kind) -> Artifact:
        """Read and verify an artifact, of one of the given kinds if any are given.

        Raises UsageError for a path that is no artifact or of another kind, CorruptInputError for damaged content.
        """
        path = Path(path)
        if path.name in ("", ".."):  # rows and pages call an artifact by its folder's name
            path = path.resolve()
        manifest_path = path / MANIFEST
        if not manifest_path.is_file():
            expected = " or ".join(k.value for k in kinds) or "an"
            lacks = f"it has no {MANIFEST}" if path.exists() else "there is no such folder"
            hint = f"give a folder that mmcompress wrote ({expected} artifact)"
            if path.is_file():
                lacks, hint = "it is a file", f"a pack becomes one: mmcompress unpack {path} --out DIR"
                if any((path.parent / name).is_file() for name in (MANIFEST, "config.json")):
                    hint = f"give the folder that it lies in: {path.parent}"
            raise UsageError(f"{path} is not an artifact: {lacks}", hint)
        manifest = read_manifest(manifest_path)
        with _standing(path):
            _verify_files(path, manifest, sha256_of if manifest.kind in _AS_LARGE_AS_DATA else hash_file)
            _check_kind(path, manifest, kinds)
            _verify_beside(path, manifest)
        return Artifact(path, manifest)

    @staticmethod
    @contextmanager
    def create(
        path: str | Path,
        *,
        kind: Kind,
        stage: str,
        key: str,
        config: Mapping[str, Any] | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> Iterator[Draft]:
        """Yield a draft in a temporary sibling folder; on success verify, sync and rename it to `path`.

        An artifact that is there already is replaced; any other folder that is not empty is refused, and so is a disk
        without room.
        """
        path = Path(path)
        check_place(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with drafted(path) as temporary:
                draft = Draft(temporary, place=path)
                yield draft
                check_finite({"facts": draft.facts, "metrics": draft.metrics})  # pydantic would write null
                manifest = Manifest(
                    kind=kind,
                    stage=stage,
                    name=path.name,
                    key=key,
                    config=dict(config or {}),
                    parents=dict(parents or {}),
                    files=_hash_files(temporary, draft.known),
                    model=draft.model,
                    graphs=tuple(draft.graphs),
                    preprocessing=draft.preprocessing,
                    tokenizer=draft.tokenizer,
                    bank=draft.bank,
                    facts=draft.facts,
                    metrics=draft.metrics,
                    environment=environment(),
                )
                manifest = manifest.model_copy(update={"digest": manifest.compute_digest()})
                _write_manifest(temporary / MANIFEST, manifest)
                _let_be_read(temporary, manifest)
                swap_in(temporary, path)


@dataclass
class Draft:
    """What a stage fills in: files under `path`, and the facts its manifest will state."""

    path: Path
    model: DualEncoderConfig | None = None
    graphs: list[Graph] = field(default_factory=list)
    preprocessing: Preprocessing | None = None
    tokenizer: TextProcessing | None = None
    bank: PromptBank | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    """SHA-256 of files that are taken as they are from a verified artifact, by name; they are not read again."""
    place: Path | None = None
    """Where it will stand, which relative paths count from; None where it will be no artifact."""

    def inherit(self, source: Artifact, *files: str) -> None:
        """Copy what a source artifact has of these files, and what its manifest says of its model, into this draft."""
        for name in source.manifest.files.keys() & set(files):
            shutil.copyfile(source.file(name), self.path / name)
        self.model = source.manifest.model
        self.preprocessing = source.manifest.preprocessing
        self.tokenizer = source.manifest.tokenizer
        self.bank = source.manifest.bank


def _hash_files(folder: Path, known: Mapping[str, str]) -> dict[str, FileEntry]:
    named = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: FileEntry(sha256=known.get(name) or hash_file(path), bytes=path.stat().st_size)
        for name, path in named.items()
    }


def _write_manifest(path: Path, manifest: Manifest) -> None:
    body = manifest.model_dump(mode="json", by_alias=True)
    write_json(path, {**body, "seal": manifest.compute_seal()})


def _let_be_read(folder: Path, manifest: Manifest) -> None:
    """By whom the user's mask allows: some libraries write files that nobody else may read."""
    mode = stat.S_IMODE((folder / MANIFEST).stat().st_mode)
    for name in manifest.files:
        (folder / name).chmod(mode)


def manifest_of_kind(folder: Path, *kinds: Kind) -> Manifest:
    """As `Artifact.open`, of a folder that has a manifest, its files not looked at: for before a first long step."""
    manifest = read_manifest(folder / MANIFEST)
    _check_kind(folder, manifest, kinds)
    return manifest


def _check_kind(folder: Path, manifest: Manifest, kinds: Sequence[Kind]) -> None:
    if kinds and manifest.kind not in kinds:
        raise UsageError(
            f"{folder} is an artifact of kind {manifest.kind.value!r}",
            f"this needs one of kind {' or '.join(repr(k.value) for k in kinds)}",
        )


def read_manifest(path: Path) -> Manifest:
    """What an artifact says of itself, none of its files looked at. Raises CorruptInputError where it was changed."""
    again = "make the artifact again: delete the folder and rerun the command that wrote it"
    return manifest_from_bytes(json_bytes(path, again), str(path), again)


@contextmanager
def _standing(folder: Path) -> Iterator[None]:
    """Whoever moves or removes a folder while it is read gets a CorruptInputError."""
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptInputError(
            f"{folder} was moved or removed while it was being read", "run the command again"
        ) from error


def manifest_from_bytes(content: bytes, where: str, again: str) -> Manifest:
    """The manifest that some bytes are. Raises CorruptInputError, naming `where` they are, for any that none wrote."""
    try:
        body = json_from_text(content)
        seal = body.pop("seal", None)
        again = again if seal else "it is not one that mmcompress wrote: give a folder that it did"
        _check_schema(body, where)
        manifest = Manifest.model_validate(body)
    except ValidationError as error:
        raise CorruptInputError(f"{where}{first_wrong(error)}", again) from error
    except (ValueError, AttributeError) as error:
        raise CorruptInputError(f"{where} cannot be read as a manifest: {error}", again) from error
    try:
        Figures.model_validate(manifest.facts)
    except ValidationError as error:
        raise CorruptInputError(f"{where}{first_wrong(error, 'facts')}", again) from error
    try:
        right = seal == manifest.compute_seal() and manifest.digest == manifest.compute_digest()
    except ValueError as error:
        raise CorruptInputError(f"{where} cannot be read as a manifest: it is nested too deeply", again) from error
    if not right:
        raise CorruptInputError(f"{where} was changed after it was written: its seal does not match its content", again)
    return manifest


def _check_schema(body: Mapping[str, Any], where: str) -> None:
    """Raise CorruptInputError, with the command that makes it again, for a manifest of another schema than is read."""
    newest = get_args(Manifest.model_fields["schema_version"].annotation)[-1]
    if (said := body.get("schema", newest)) == newest and not isinstance(said, bool):
        return
    stage = f"{'data ' if body.get('kind') == Kind.SHARDS else ''}{body.get('stage')}"
    command = f"`mmcompress {stage}`" if re.fullmatch(r"[a-z -]+", stage) else "its command"
    raise CorruptInputError(
        f"{where} is written in schema {said!r}, and this version reads schema {newest}",
        f"make it again in another folder: {command}; or read it with the mmcompress that wrote it",
    )


def _verify_files(folder: Path, manifest: Manifest, hashed: Callable[[Path], str]) -> None:
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise CorruptInputError(
                f"{folder / MANIFEST} lists {name!r}, which lies outside of the artifact", "do not use it"
            )
        if not file.is_file():
            raise CorruptInputError(
                f"{file} is missing, and the manifest lists it", f"delete {folder} and make it again"
            )
        if file.stat().st_size != entry.bytes or hashed(file) != entry.sha256:
            raise CorruptInputError(
                f"{file} is damaged: expected {entry.bytes} bytes with SHA-256 {entry.sha256[:12]}…",
                f"delete {folder} and make it again, or restore it from a copy",
            )


def _verify_beside(folder: Path, manifest: Manifest) -> None:
    """Raise CorruptInputError for a graph whose weights come from a file that the manifest does not list."""
    for name in dict.fromkeys(graph.file for graph in manifest.graphs if manifest.kind is Kind.ONNX):
        for beside in sorted(files_beside(folder / name)) if name in manifest.files else ():
            listed = Path(os.path.normpath(Path(name).parent / beside)).as_posix()
            if listed not in manifest.files:
                raise CorruptInputError(
                    f"{folder / name} reads weights from {beside!r}, which {folder / MANIFEST} does not list",
                    "do not use it: what is in that file was never verified",
                )

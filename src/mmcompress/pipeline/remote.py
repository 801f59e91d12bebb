"""Commands on another machine: artifacts go there as packs, mmcompress runs there, what it made comes back as one.

A folder of the cache there holds what was sent, by the seal of its manifest, so what is there already is not sent
again, and what was cut off goes on where it stopped. The command there is the same as here and reuses by the same keys.
What comes back is verified like any pack. When a command has ended well, what it left there is removed, unless it is
kept for the next one; after an error it stays, so that the next try goes on.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmcompress import __version__
from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.lock import locked
from mmcompress.manifest import Kind, Manifest, hash_json
from mmcompress.pack import SUFFIX, pack, read_pack, unpack
from mmcompress.pipeline.converted import name_of, told_apart
from mmcompress.pipeline.ssh import NOT_FOUND, Answer, Host, check, connected
from mmcompress.places import MANIFEST, check_place, inside_folders
from mmcompress.progress import say
from mmcompress.strictjson import json_from_text

_CACHE = '"${MMCOMPRESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmcompress}"/remote'

_TAKEN: Mapping[str, tuple[Kind, ...]] = {
    "build": (Kind.ONNX, Kind.CHECKPOINT),
    "bench": (Kind.ONNX, Kind.ENGINE, Kind.CHECKPOINT),
    "drift": (Kind.ONNX, Kind.ENGINE, Kind.CHECKPOINT),
}
"""Kinds of artifacts that a command is about."""


@dataclass(frozen=True)
class There:
    """How to reach a machine, and its mmcompress."""

    host: str
    ssh: str = "ssh"
    command: str = "mmcompress"
    """What starts mmcompress there, in words of its shell: `~/venv/bin/mmcompress`."""
    keep: bool = False


@dataclass(frozen=True)
class Device:
    """A connected machine that has our mmcompress."""

    host: Host
    command: str
    folder: str
    """Absolute, below the cache there."""

    def call(self, *words: str, quiet: bool = False) -> Answer:
        """Run mmcompress there, in its folder; raises MissingRequirementError where that does not know the command."""
        line = " ".join(map(shlex.quote, words))
        answer = self.host.run(f"cd {shlex.quote(self.folder)} && exec {self.command} {line}", quiet=quiet)
        if answer.code == UsageError.exit_code and "No such command" in answer.errors:
            raise MissingRequirementError(
                f"the mmcompress on {self.host.name} knows no {words[0]!r}: it is an old one", _install(__version__)
            )
        return answer

    def checked(self, *words: str, quiet: bool = False) -> Answer:
        """The same; raises what it ended with."""
        return check(self.call(*words, quiet=quiet), self.host.name)


@contextmanager
def on(there: There) -> Iterator[Device]:
    """Connect, look for mmcompress, and make its folder.

    Raises MissingRequirementError where there is no connection, no mmcompress or one of another version.
    """
    say("remote", there.host, "connecting")  # a line, and no sign of life: ssh may ask for a password
    with connected(there.host, there.ssh) as host:
        script = f"mkdir -p {_CACHE} && cd {_CACHE} && pwd -P && {there.command} --version"
        answer = host.run(script, quiet=True)
        lines = answer.out.splitlines()
        if answer.code == NOT_FOUND or (answer.code == 126):
            raise MissingRequirementError(
                f"there is no `{there.command}` on {there.host}",
                f"{_install(__version__)}, or say where it is: --command '~/venv/bin/mmcompress'",
            )
        if answer.code or len(lines) < 2 or not lines[-2].startswith("/"):
            raise MissingRequirementError(
                f"`{there.command} --version` fails on {there.host}: {(answer.errors or answer.out).strip()[-300:]}",
                "run it there by hand",
            )
        if lines[-1].strip() != __version__:
            raise MissingRequirementError(
                f"{there.host} has mmcompress {lines[-1].strip()}, and here is {__version__}", _install(__version__)
            )
        yield Device(host, there.command, lines[-2])


def _install(version: str) -> str:
    return f"install it there: pip install mmcompress=={version}"


def doctor(there: There, words: Sequence[str]) -> Answer:
    """What `doctor` says there; its exit code is the caller's to judge."""
    with on(there) as device:
        return device.call("doctor", *words)


def run_stage(there: There, stage: str, words: Sequence[str], out: Path) -> Artifact:
    """Run `build`, `bench` or `drift` there: `words` are artifacts or packs here, then options of the command there."""
    count = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    sources, options = [Path(word) for word in words[:count]], list(words[count:])
    if not sources:
        raise UsageError(f"remote {stage} needs an artifact or a pack", "give it after the host, before other options")
    check_place(out, sources, stage)
    with inside_folders(out), _sending(out) as folder:
        packed = [_as_pack(source, folder / f"{at}{SUFFIX}") for at, source in enumerate(sources)]
        for source, (_, manifest) in zip(sources, packed, strict=True):
            _check_kind(stage, source, manifest)
        with on(there) as device:
            names = told_apart([name_of(source).removesuffix(SUFFIX) for source in sources])
            sent = [_sent(device, path, manifest, name) for (path, manifest), name in zip(packed, names, strict=True)]
            made = f"{stage}-{hash_json([sent, options])[:16]}"
            done = device.checked(stage, *sent, "--out", f"{made}/{out.name}", "--json", *options)
            _document(device, done)
            artifact = _brought(device, made, out)
            if not there.keep:
                there_now = (*(artifact.split("/")[0] for artifact in sent), made)
                left = " ".join(shlex.quote(f"{device.folder}/{place}") for place in there_now)
                device.host.run(f"rm -rf {left}", quiet=True)
    return artifact


@contextmanager
def _sending(out: Path) -> Iterator[Path]:
    """A folder beside `out` for packs on their way, of one command at a time; what a killed one left there goes."""
    folder = out.with_name(f".{out.name}.sending")
    with locked(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_kind(stage: str, source: Path, manifest: Manifest) -> None:
    """Raise UsageError for what the command there refuses, before it is sent."""
    if manifest.kind not in _TAKEN[stage]:
        kinds = " or ".join(repr(kind.value) for kind in _TAKEN[stage])
        raise UsageError(
            f"{source} is an artifact of kind {manifest.kind.value!r}", f"remote {stage} takes those of kind {kinds}"
        )


def _as_pack(source: Path, place: Path) -> tuple[Path, Manifest]:
    """The pack at a source, verified, or one that is made of its folder."""
    return (place, pack(source, place)) if (source / MANIFEST).is_file() else (source, read_pack(source))


def _sent(device: Device, path: Path, manifest: Manifest, name: str) -> str:
    """`SEAL/NAME`, the artifact of a pack there; it is sent unless it is there. The name is the user's own, by which
    rows of a document are called; what a manifest calls itself is no path."""
    seal = manifest.compute_seal()[:32]
    place, part = f"{device.folder}/{seal}", f"{device.folder}/{seal}{SUFFIX}"
    artifact = f"{place}/{name}"
    if device.host.run(f"[ -f {shlex.quote(f'{artifact}/{MANIFEST}')} ]", quiet=True).code == 0:
        say("remote", name, f"is on {device.host.name} already")
        return f"{seal}/{name}"
    for last in (False, True):
        say("remote", name, f"to {device.host.name}, {path.stat().st_size:,} bytes")
        with path.open("rb") as stream:
            device.host.send(stream, path.stat().st_size, part)
        answer = device.call("unpack", part, "--out", artifact, quiet=True)
        if answer.code == 0 or last or answer.code not in (UsageError.exit_code, CorruptInputError.exit_code):
            break
        device.host.run(f"rm -f {shlex.quote(part)}", quiet=True)  # what was there was not the begin of it
    check(answer, device.host.name)
    device.host.run(f"rm -f {shlex.quote(part)}", quiet=True)
    return f"{seal}/{name}"


def _brought(device: Device, made: str, out: Path) -> Artifact:
    """What a command made there, as an artifact at `out`."""
    there = f"{made}/{out.name}"
    packed = device.checked("pack", there, "--out", f"{there}{SUFFIX}", "--json", quiet=True)
    seal = str(_document(device, packed)["seal"])
    part = out.with_name(f".{out.name}.{seal[:16]}.part")
    say("remote", out.name, f"from {device.host.name}")
    for last in (False, True):
        device.host.receive(f"{device.folder}/{there}{SUFFIX}", part)
        try:
            artifact = unpack(part, out)
        except (CorruptInputError, UsageError):
            part.unlink()  # what was here was not the begin of it
            if last:
                raise
            continue
        part.unlink()
        break
    return artifact


def _document(device: Device, answer: Answer) -> dict[str, object]:
    """What `--json` printed there."""
    try:
        document = json_from_text(answer.out.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise MissingRequirementError(
            f"{device.command} on {device.host.name} printed no JSON", "it has to be mmcompress itself"
        ) from error
    assert isinstance(document, dict)
    return document

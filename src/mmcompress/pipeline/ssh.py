"""Another machine over the system's OpenSSH: commands that run there, and files that get there and back.

The user's `ssh` is started as the user would start it, with its config, keys and known hosts. Nothing of that is
disabled: a host that is not known is asked about by ssh, or refused. One connection is opened and shared by all that
follows (ControlMaster). Keep-alives are sent where the config asks for none, so that a network that is gone is noticed
within a minute. What runs there ends when the connection does: its stdin is watched, as sshd tells nobody.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mmcompress.errors import CorruptInputError, GateFailedError, MissingRequirementError, MMCompressError, UsageError

SSH_FAILED = 255
"""What ssh itself exits with."""
NOT_FOUND = 127
_LAST = 40
"""Lines of stderr that are kept, to say what went wrong."""
_PIECE = 1 << 20
_IDLE_SECONDS = 60
"""After which a shared connection that nobody uses ends by itself, where its owner was killed."""
_KINDS: Mapping[int, type[MMCompressError]] = {
    error.exit_code: error for error in (GateFailedError, UsageError, MissingRequirementError, CorruptInputError)
}
_FIRST = "`SSH` has to work first"
_LOST = "the connection was lost: run the same command again, it goes on with what has arrived"
_REASONS: tuple[tuple[str, str], ...] = (
    (r"HOST IDENTIFICATION HAS CHANGED", "its key is another one than known_hosts has: find out why before you go on"),
    (r"Host key verification failed", "its key is not known: connect once with `SSH`, compare it, and say yes"),
    (r"Permission denied|Too many authentication", "it takes none of your keys: `SSH` has to work first"),
    (r"Could not resolve", "no such host: look for a slip in the name, or give it an entry in ~/.ssh/config"),
    (r"refused|timed out|No route|unreachable", "nothing answers there: is it on, does sshd run, is the port right?"),
    (r"Connection (to .* )?(closed|reset)|Broken pipe|not responding|disconnect|closed by", _LOST),
)


@dataclass(frozen=True)
class Answer:
    """What a command there printed, and how it ended."""

    code: int
    out: str
    errors: str
    """The last lines of stderr; all of it was shown as it came."""


@dataclass(frozen=True)
class Host:
    """A machine that is connected."""

    name: str
    program: tuple[str, ...]
    options: tuple[str, ...]

    def run(self, script: str, *, quiet: bool = False) -> Answer:
        """Run a shell script there and wait for it. Raises MissingRequirementError where the connection breaks."""
        watched = (
            f"exec 3<&0; ( {script} ) </dev/null & job=$!; "
            "( cat <&3; kill $job ) >/dev/null 2>&1 & watch=$!; wait $job; code=$?; kill $watch 2>/dev/null; exit $code"
        )
        with self._started(watched, stdin=subprocess.PIPE) as process:
            told = _Told(process, quiet)
            assert process.stdout is not None
            out = process.stdout.read().decode(errors="replace")
            return self._checked(Answer(process.wait(), out, told()))

    def send(self, source: IO[bytes], size: int, there: str) -> None:
        """Append to a file there what it lacks of `source`, whose `size` bytes it begins with."""
        have = self.size_of(there)
        source.seek(have if have <= size else 0)
        append = ">>" if have <= size else ">"
        with self._started(f"cat {append} {shlex.quote(there)}", stdin=subprocess.PIPE) as process:
            told = _Told(process, quiet=False)
            assert process.stdin is not None
            try:
                shutil.copyfileobj(source, process.stdin, _PIECE)
                process.stdin.close()
            except BrokenPipeError:
                process.stdin = None
            answer = self._checked(Answer(process.wait(), "", told()))
        if answer.code:
            raise UsageError(f"{there} cannot be written on {self.name}: {_last(answer)}", "make room there")

    def receive(self, there: str, target: Path) -> None:
        """Append to a file here what it lacks of one there, which it is the begin of."""
        have = target.stat().st_size if target.exists() else 0
        with (
            target.open("ab") as file,
            self._started(f"tail -c +{have + 1} {shlex.quote(there)}", stdin=subprocess.DEVNULL) as process,
        ):
            told = _Told(process, quiet=False)
            assert process.stdout is not None
            shutil.copyfileobj(process.stdout, file, _PIECE)
            answer = self._checked(Answer(process.wait(), "", told()))
        if answer.code:
            raise UsageError(f"{there} cannot be read on {self.name}: {_last(answer)}", "run the command again")

    def size_of(self, there: str) -> int:
        """Bytes of a file there, 0 where there is none."""
        name = shlex.quote(there)
        return int(self.run(f"if [ -f {name} ]; then wc -c < {name}; else echo 0; fi", quiet=True).out)

    def _checked(self, answer: Answer) -> Answer:
        if answer.code == SSH_FAILED:
            raise lost(self.name, self.program, answer.errors, _LOST)
        return answer

    @contextmanager
    def _started(self, script: str, stdin: int) -> Iterator[subprocess.Popen[bytes]]:
        command = [*self.program, *self.options, "--", self.name, f"sh -c {shlex.quote(script)}"]
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with_no_reader(stream)


def with_no_reader(stream: IO[bytes]) -> None:
    """Close a pipe, also one with bytes for a reader that is gone."""
    try:
        stream.close()
    except BrokenPipeError:
        return


@contextmanager
def connected(name: str, ssh: str = "ssh") -> Iterator[Host]:
    """A host as ssh knows it, `user@host` or an entry of its config; `ssh` is the program with options of its own.

    Raises MissingRequirementError without ssh, and where there is no connection, with what mends it.
    """
    program = _words(ssh)
    if not re.fullmatch(r"[^-\s][^\s]*", name):
        raise UsageError(f"{name!r} is not the name of a host", "give user@host, as for ssh")
    if shutil.which(program[0]) is None:
        raise MissingRequirementError(
            f"there is no {program[0]} here", "install OpenSSH's client: apt install openssh-client"
        )
    with tempfile.TemporaryDirectory(prefix="mmc-", ignore_cleanup_errors=True) as folder:
        found = subprocess.run([*program, "-G", "--", name], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if found.returncode:
            raise UsageError(f"ssh does not understand {name!r}: {found.stderr.strip()}", "give user@host, as for ssh")
        alive = re.search(r"^serveraliveinterval (\d+)", found.stdout, re.MULTILINE)
        kept = [] if alive and int(alive[1]) else ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
        shared = [] if os.name == "nt" else ["-o", f"ControlPath={folder}/c"]
        master = [
            *program,
            *kept,
            *shared,
            "-o",
            "ControlMaster=yes",
            "-o",
            f"ControlPersist={_IDLE_SECONDS}",
            "-fN",
            "--",
            name,
        ]
        if shared:
            with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
                opened = subprocess.run(master, stderr=said, stdout=subprocess.DEVNULL)
                said.seek(0)
                if opened.returncode:
                    raise lost(name, program, said.read())
        try:
            yield Host(name, program, (*kept, *shared))
        finally:
            if shared:
                end = [*program, *shared, "-O", "exit", "--", name]
                subprocess.run(end, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _words(ssh: str) -> tuple[str, ...]:
    """The program and its options, in words of a shell."""
    try:
        return tuple(shlex.split(ssh)) or ("ssh",)
    except ValueError as error:
        raise UsageError(f"--ssh {ssh!r} is no command: {error}", "close its quotes: --ssh 'ssh -p 2222'") from error


def check(answer: Answer, host: str) -> Answer:
    """Raise what an mmcompress there ended with, in its own words."""
    if answer.code:
        what = re.findall(r"^error: (.*)", answer.errors, re.MULTILINE)
        hint = re.findall(r"^hint: (.*)", answer.errors, re.MULTILINE)
        kind = _KINDS.get(answer.code, UsageError)
        raise kind(f"on {host}: {what[-1] if what else _last(answer)}", hint[-1] if hint else "")
    return answer


def lost(name: str, program: Sequence[str], errors: str, otherwise: str = _FIRST) -> MissingRequirementError:
    """What it means that ssh failed, by its own words, or `otherwise`."""
    last = errors.strip().splitlines()[-1:] or ["ssh gave no reason"]
    hint = next((hint for pattern, hint in _REASONS if re.search(pattern, errors)), otherwise)
    ssh = shlex.join([*program, name])
    return MissingRequirementError(f"no connection to {name}: {last[0].strip()}", hint.replace("SSH", ssh))


def _last(answer: Answer) -> str:
    """The last line of stderr with words in it: a wrong option is told in a box."""
    told = (line.strip(" \u2500\u2502\u256d\u256e\u2570\u256f") for line in answer.errors.splitlines())
    lines = [line for line in told if line]
    return lines[-1] if lines else f"it ended with {answer.code}"


class _Told:
    """Shows stderr as it comes, and keeps its last lines."""

    def __init__(self, process: subprocess.Popen[bytes], quiet: bool) -> None:
        self._lines: deque[str] = deque(maxlen=_LAST)
        self._thread = threading.Thread(target=self._listen, args=(process.stderr, quiet), daemon=True)
        self._thread.start()

    def _listen(self, stream: IO[bytes], quiet: bool) -> None:
        for line in stream:
            text = line.decode(errors="replace")
            self._lines.append(text)
            if not quiet and not text.startswith(("error: ", "hint: ")):
                sys.stderr.write(text)
                sys.stderr.flush()

    def __call__(self) -> str:
        self._thread.join(timeout=10)
        return "".join(self._lines)

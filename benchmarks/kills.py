"""Kill a recipe at random moments of every stage, give the same command again, and compare with an uninterrupted run.

    python benchmarks/kills.py [--kills 5] [--signal KILL|TERM|INT] [--seed 0]

The recipe has every stage that needs no network, on sixty squares. Each stage is killed `--kills` times, in turn at a
random moment of it and at a random call that changes a folder (fsync, rename, replace, link, mkdir, unlink, rmdir):
inside publishing, writing of states and tidying. After each kill every folder that is visible has to be a whole
artifact; after TERM and INT nothing hidden may lie there but work to go on from. In the end the same command has to
make the digests of the uninterrupted run, and to leave nothing hidden. Processes are forked from one that has imported
what stages need, so that kills fall into stages and not into imports. Prints a table in Markdown; exits with 1 where
anything was not so.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "worlds"))

from mmcompress.artifact import Artifact
from mmcompress.errors import MMCompressError
from mmcompress.runtime.machine import cpu_model, usable_cores

FEW = "optimizer = {steps = 4, batch = 10, save_minutes = 1e-9}"
ANY = "samples = 20\nbatch = 10\nmax_drop = 1.0\nmax_flips = 1.0"
BACKEND = "onnxruntime"
STAGES = (
    ("baseline", 'name = "teacher"'),
    ("embed", "views = 2\nbatch = 8"),
    ("embed", 'name = "again"\nviews = 2\nbatch = 8'),
    ("ensemble", ""),
    ("distill", f'embeddings = "embed"\n{FEW}'),
    ("train", f'student = {{source = "vit-t8-64", image_size = 32}}\n{FEW}'),
    ("convert", ""),
    ("finetune", f'checkpoint = "convert"\n{FEW}'),
    ("prune", 'checkpoint = "distill"\nembeddings = "embed"\nheads = 0.5\nmlp_multiple = 8\nsamples = 20\nbatch = 10'),
    ("quantize", f'checkpoint = "convert"\n{ANY}'),
    ("qat", f'checkpoint = "quantize"\n{FEW}'),
    ("export", 'name = "fp32"\ncheckpoint = "qat"\nprecisions = ["fp32"]'),
    ("export", 'name = "int8"\ncheckpoint = "qat"\nprecisions = ["int8"]'),
    ("quantize-graphs", f'graphs = "fp32"\n{ANY}'),
    ("static", 'graphs = "fp32"'),
    ("build", 'graphs = "int8"\ntargets = ["sm89"]'),
    ("verdict", f'checkpoint = "quantize"\nbackend = "{BACKEND}"\nseconds = 0.1\nmax_drop = 1.0\nmax_flips = 1.0'),
    (
        "bench",
        f'backends = ["{BACKEND}"]\nbatches = [1]\nrounds = 4\nseconds = 0.02\npriority = false\nceiling = false',
    ),
    ("drift", ""),
    ("bisect", 'reference = "fp32"\ncandidate = "int8"'),
    ("report", ""),
)
MEASURED = {"verdict", "bench", "drift", "report"}
"""Stages whose files have times in them, or are of rows of which one is the graph that was the fastest."""
TRIES = 5
"""A run that goes on from what is kept may be over before its moment; then it gets another one."""
IMPORTED = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "optimum.exporters.onnx", "tensorrt_rtx")
CALLS = ("fsync", "rename", "replace", "link", "mkdir", "unlink", "rmdir")


@dataclass(frozen=True)
class Plan:
    """When a run gets its signal: so many seconds, or calls, after a stage began."""

    stage: str
    seconds: float | None = None
    call: int | None = None
    number: int = signal.SIGKILL


def write_world(folder: Path) -> None:
    """Squares that their captions find, a teacher in Hugging Face's format, and the recipe."""
    from matched_clip import PREPROCESSING, write_matched, write_squares

    from mmcompress.huggingface import dual_encoder_from_checkpoint, save_checkpoint
    from mmcompress.processing import save_preprocessing

    data = write_squares(folder)
    teacher = folder / "teacher"
    teacher.mkdir()
    made = write_matched(teacher, data)
    save_checkpoint(dual_encoder_from_checkpoint(made.path, made.model), teacher)
    save_preprocessing(PREPROCESSING, teacher)
    tables = [
        f'[data]\ntrain = "part:5-9/10:{data}"\nvalidation = "part:0-4/10:{data}"\ntest = "{data}"',
        f'[teacher]\nsource = "{teacher}"\n[student]\nsource = "inherit:0.8"',
        *(f'[[stage]]\nrun = "{stage}"\n{keys}' for stage, keys in STAGES),
    ]
    (folder / "recipe.toml").write_text("\n".join(tables) + "\n")


def forked(work: Callable[[], object], log: Path) -> int:
    """The process that does some work and ends with what `sys.exit` in it says."""
    if (process := os.fork()) != 0:
        return process
    status = 1
    try:
        with log.open("ab", buffering=0) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        work()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(recipe: Path, out: Path, plan: Plan | None, told: int) -> None:
    """The command, in a forked process, which tells by a pipe which stages begin and end, and after how many calls."""
    from mmcompress.cli.main import main
    from mmcompress.pipeline import run as pipeline

    say, within, calls = pipeline.say, "", 0

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if plan is not None and plan.stage == within and plan.call == calls:
                os.write(told, f"{within}\n".encode())
                os.kill(os.getpid(), plan.number)
            return call(*given, **named)

        return instead

    def heard(stage: str, name: str, text: str, turn: str = "") -> None:
        nonlocal within, calls
        if text == "running":
            within, calls = name, 0
            os.write(told, f"{name}\n".encode())
        elif text.startswith("done"):
            os.write(told, f"{name} {calls}\n".encode())
        say(stage, name, text, turn)
        if plan is not None and plan.stage == name and text != "running":
            os._exit(0)  # the moment was behind its end

    pipeline.say = heard
    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    sys.argv = ["mmcompress", "run", str(recipe), "--out", str(out)]
    main()


def uninterrupted(recipe: Path, out: Path, log: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds and calls of each stage."""
    reading, writing = os.pipe()
    process = forked(lambda: run(recipe, out, None, writing), log)
    os.close(writing)
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    with open(reading) as stream:  # noqa: PTH123, a descriptor
        for line in stream:
            name, *counted = line.split()
            if counted:
                seconds[name], calls[name] = time.monotonic() - seconds[name], int(counted[0])
            else:
                seconds[name] = time.monotonic()
    ended = os.waitpid(process, 0)[1]
    if ended:
        sys.exit(f"the uninterrupted run ended with {os.waitstatus_to_exitcode(ended)}:\n{log.read_text()[-2000:]}")
    return seconds, calls


def killed(recipe: Path, out: Path, plan: Plan, log: Path) -> tuple[str, int]:
    """In which stage the signal came, nothing where the run was over; and how the run ended."""
    reading, writing = os.pipe()
    process = forked(lambda: run(recipe, out, plan, writing), log)
    os.close(writing)
    within, due, heard = "", None, b""
    while due is None or time.monotonic() < due:
        ready = select.select([reading], [], [], None if due is None else max(0, due - time.monotonic()))[0]
        if not ready:
            break
        piece = os.read(reading, 4096)
        if not piece:
            break
        heard += piece
        *lines, heard = heard.split(b"\n")
        for line in (line.decode() for line in lines if b" " not in line):
            within = line
            if line == plan.stage and plan.seconds is not None and due is None:
                due = time.monotonic() + plan.seconds
    if plan.seconds is not None:
        os.kill(process, plan.number)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.close(reading)
    return (within if status else ""), status


def half_visible(out: Path) -> list[str]:
    """Folders that are visible and no whole artifact."""
    found = []
    for path in sorted(out.iterdir()) if out.is_dir() else []:
        if not path.name.startswith("."):
            try:
                Artifact.open(path)
            except MMCompressError as error:
                found.append(f"{path.name}: {error.what}")
    return found


def hidden(out: Path, allowed: str = "") -> list[str]:
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    return [name for name in names if name.startswith(".") and not (allowed and allowed in name)]


def digests(out: Path) -> dict[str, str]:
    opened = {path.name: Artifact.open(path) for path in out.iterdir() if not path.name.startswith(".")}
    return {name: a.digest for name, a in opened.items() if a.manifest.stage not in MEASURED}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="of each stage")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    number = int(signal.Signals[f"SIG{asked.signal}"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` lets be ignored
    moments = random.Random(asked.seed)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # read when torch is imported
    for name in IMPORTED:
        importlib.import_module(name)
    counts: Counter[str] = Counter()
    faults: list[str] = []
    ends: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe, log, out = folder / "recipe.toml", folder / "log", folder / "killed"
        os.environ["MMCOMPRESS_CACHE"] = str(folder / "cache")
        os.waitpid(forked(lambda: write_world(folder), log), 0)
        seconds, calls = uninterrupted(recipe, folder / "whole", log)
        for stage in seconds:
            for kill in range(asked.kills):
                by_call = kill % 2 == 1
                within, tries = "", 0
                while not within and tries < TRIES:
                    shutil.rmtree(out / stage, ignore_errors=True)
                    plan = Plan(
                        stage,
                        seconds=None if by_call else moments.uniform(0, seconds[stage]),
                        call=moments.randint(1, calls[stage]) if by_call else None,
                        number=number,
                    )
                    within, ended = killed(recipe, out, plan, log)
                    tries += 1
                counts[within or "missed"] += 1
                ends[ended] += 1
                faults += [f"{stage}, kill {kill + 1}: {fault}" for fault in half_visible(out)]
                if within and number != signal.SIGKILL:  # else the run has ended itself, behind the moment
                    left = hidden(out, allowed=".work")
                    faults += [f"{stage}, signal {kill + 1} left {left}"] if left else []
        uninterrupted(recipe, out, log)
        expected, found = digests(folder / "whole"), digests(out)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        left = hidden(out)
        _, *traces = log.read_text(errors="replace").split("Traceback")
    print(f"{cpu_model()}, {usable_cores()} cores; python benchmarks/kills.py {' '.join(sys.argv[1:])}\n")
    print(f"| stage | seconds | calls | {asked.signal} within |\n|---|--:|--:|--:|")
    for stage in [*seconds, *(name for name in counts if name not in seconds)]:
        print(f"| {stage} | {seconds.get(stage, 0):.1f} | {calls.get(stage, 0)} | {counts[stage]} |")
    print(f"\n{sum(counts.values())} signals; the runs ended with {dict(sorted(ends.items()))}.")
    print(f"Half artifacts seen, or hidden files left by a signal: {len(faults)}. {'; '.join(faults[:5])}")
    print(f"{len(expected)} artifacts compared afterwards, different: {', '.join(different) or 'none'}.")
    print(f"Left behind in the end: {', '.join(left) or 'nothing'}. Tracebacks: {len(traces)}.")
    for trace in traces:
        print(f"Traceback{trace[:3000]}", file=sys.stderr)
    return int(bool(faults or different or left or traces))


if __name__ == "__main__":
    sys.exit(main())

"""The command line: what it prints, and the message and exit code of every mistake a user can make."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_run import make_run

from mmcompress.artifact import Artifact
from mmcompress.cli import commands
from mmcompress.cli import main as program
from mmcompress.errors import CorruptInputError, GateFailedError, MissingRequirementError, UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone

Cli = Callable[..., Any]
COMMANDS = (
    *(
        "run",
        "train",
        "embed",
        "import-embeddings",
        "ensemble",
        "convert",
        "distill",
        "prune",
        "quantize",
        "qat",
        "verdict",
        "export",
        "build",
        "shrink",
    ),
    *("bench", "compare", "drift", "bisect", "report", "check"),
    *("classify", "search", "inspect", "pack", "unpack", "remote", "triton", "doctor"),
)
ENTRY = [sys.executable, "-m", "mmcompress"]


def test_help_lists_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert f" {command} " in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.code == 0 and "Usage: mmcompress" in done.out


def test_help_starts_fast() -> None:
    """At most 0.4 s of a processor for the whole process, the best of five: other tests run beside this one."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*ENTRY, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) <= 0.4, times


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, mmcompress.cli.commands as c\n"
        "try: c.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'transformers', 'PIL', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(cli: Cli) -> None:
    from mmcompress import __version__

    assert cli("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("error", "code"), [(GateFailedError, 1), (UsageError, 2), (MissingRequirementError, 3), (CorruptInputError, 4)]
)
def test_errors_are_two_lines_and_an_exit_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: type[UsageError], code: int
) -> None:
    def fail(*_: object) -> None:
        raise error("it broke", "mend it")

    monkeypatch.setattr(standalone, "run", fail)
    done = cli("run", "demo", "--out", "x")
    assert (done.code, done.out, done.err) == (code, "", "error: it broke\nhint: mend it\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(standalone, "run", fail)
    monkeypatch.setattr(sys, "argv", ["mmcompress", "run", "demo", "--out", "x"])
    with pytest.raises(ZeroDivisionError):
        program.main()


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 786. GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_is_not_there_is_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(**_: object) -> None:
        raise error

    monkeypatch.setattr(program, "app", out_of_memory)
    monkeypatch.setattr(sys, "argv", ["mmcompress", "doctor"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and said[-2] == f"error: there is not enough memory: {error}"
    assert said[-1].startswith("hint: let it take less at once")


def test_control_c_ends_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(standalone, "run", interrupt)
    assert cli("run", "demo", "--out", "x").code == 130


def test_wrong_usage_ends_with_2(cli: Cli) -> None:
    assert cli("run").code == 2
    assert cli("runn").code == 2
    assert "No such option" in cli("doctor", "--jsn").err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("compare", "a"), "mmcompress compare: Missing argument 'B'"),
        (("doctor", "--jsn"), "mmcompress doctor: No such option: --jsn"),
        (("runn",), "mmcompress: No such command 'runn'"),
        (("classify", "a", "b", "--labels"), "mmcompress: Option '--labels' requires an argument"),
        (("data", "stat", "x"), "mmcompress data: No such command 'stat'"),
        (("search", "a", "b", "--top", "many"), "mmcompress search: Invalid value for '--top'"),
        (("export", "a"), "mmcompress export: Missing option '--out'"),
    ],
)
def test_wrong_words_are_one_sentence_and_a_hint(words: tuple[str, ...], what: str, cli: Cli) -> None:
    done = cli(*words)
    error, hint = done.err.splitlines()
    assert done.code == 2 and error.startswith(f"error: {what}"), done.err
    assert hint == f"hint: what it takes is said by: {what.split(':')[0]} --help"


def test_an_error_quotes_no_whole_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("w" * 1_000_000)
    done = cli("classify", "demo:teacher", tmp_path / "x.png", "--labels", tmp_path / "labels.txt")
    assert done.code == 2 and len(done.err) < 6000, done.err[:300]


@pytest.mark.parametrize("words", [(), ("data",)])
def test_no_words_at_all_show_the_help_alone(words: tuple[str, ...], cli: Cli) -> None:
    done = cli(*words)
    assert done.code == 2 and "Usage: mmcompress" in done.out and not done.err


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (("inspect", "nowhere"), "nowhere is not an artifact: there is no such folder", "folder that mmcompress wrote"),
        (("run", "demoo", "--out", "x"), "there is no recipe 'demoo'", "did you mean 'demo'?"),
        (("run", "no.toml", "--out", "x"), "there is no recipe no.toml", "give a .toml file, or `demo`"),
        (("run", "demo", "--out", "x", "--set", "prune.mlpp=1"), "unknown key 'mlpp'", "did you mean 'mlp'?"),
        (("run", "demo", "--out", "x", "--set", "prun.mlp=1"), "no table or stage 'prun'", "did you mean 'prune'?"),
        (("run", "demo", "--out", "x", "--set", "prune.mlp"), "'prune.mlp' is not KEY=VALUE", "--set prune.mlp=0.4"),
        (
            ("run", "demo", "--out", "x", "--set", "prune.mlp=2"),
            "mlp is 2: Input should be less than or equal to 1",
            "Share of the MLP",
        ),
        (("train", "demo", "--out", "x"), "ends with a stage that runs 'report'", "at the end"),
        (("distill", "--out", "x"), "distill needs a student", "--student vit-s16"),
        (("distill", "--student", "vit-s16", "--out", "x"), "embeddings are not known", "give --embeddings ARTIFACT"),
        (
            ("embed", "--teacher", "demo:teacher", "--data", "nowhere/*.tar", "--out", "x"),
            "nowhere/*.tar",
            "WebDataset shards",
        ),
        (("compare", "nowhere", "there"), "nowhere is not an artifact: there is no such folder", "mmcompress wrote"),
        (("compare", "a", "b", "--precision", "int4"), "there is no precision 'int4'", "did you mean 'int8'?"),
        (("compare", "a", "b", "--pin", "0-3"), "--pin '0-3' is no list of cores", "--pin 0,1"),
        (("report", "."), "nothing to report on", "give a folder of `mmcompress run`"),
        (("classify", "nowhere", "cat.png", "--labels", "cat,dog"), "nowhere is not an artifact", "mmcompress wrote"),
    ],
)
def test_user_errors(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], what: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*arguments)
    assert done.code == 2, done.err
    error, _, advice = done.err.partition("\nhint: ")
    assert error.startswith("error: ") and what in error
    assert hint in advice
    assert done.out == ""


def test_a_missing_extra_is_named_with_its_pip_command(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    done = cli("build", run[4].path, "--out", tmp_path / "engine")
    assert done.code == 3
    assert "'tensorrt_rtx'" in done.err and "hint: pip install 'mmcompress[tensorrt-rtx]'" in done.err
    assert not (tmp_path / "engine").exists()


def test_a_flipped_byte_is_found(cli: Cli, tmp_path: Path) -> None:
    file = make_run(tmp_path)[0].file("image-fp32.onnx")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    done = cli("inspect", tmp_path / "teacher")
    assert done.code == 4
    assert "image-fp32.onnx is damaged" in done.err and "hint: delete" in done.err


def test_an_artifact_of_another_kind_is_refused(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path)
    done = cli("bench", tmp_path / "drift", "--out", tmp_path / "b")
    assert done.code == 2 and "is an artifact of kind 'report'" in done.err and "'onnx'" in done.err


def test_inspect_shows_the_manifest(cli: Cli, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    done = cli("inspect", tmp_path / "int8")
    assert done.code == 0
    for text in (run[4].digest, "image-int8-unsigned.onnx", "pixels (N,3,64,64) float32", "params"):
        assert text in done.out
    assert json.loads(cli("inspect", tmp_path / "int8", "--json").out)["digest"] == run[4].digest


@pytest.mark.parametrize("out", ["n" * 300, "~nouser/x"])
def test_an_output_that_cannot_be_is_a_sentence(cli: Cli, out: str, tmp_path: Path) -> None:
    for words in (
        ("embed", "--teacher", "demo:teacher", "--data", "demo:val"),
        ("drift", tmp_path, "--data", "demo:val"),
    ):
        done = cli(*words, "--data", "demo:val", "--out", out)
        assert done.code == 2 and done.err.startswith("error: "), done.err


def test_what_others_wrote_sends_nothing_to_the_terminal(cli: Cli, tmp_path: Path) -> None:
    facts = {"note": "a\x1b[2J\x1b]0;owned\x07\x9b5m\rb"}
    with Artifact.create(tmp_path / "x", kind=Kind.ONNX, stage="export", key="k") as draft:
        draft.facts = facts
    shown = cli("inspect", tmp_path / "x").out
    assert r"a\x1b[2J\x1b]0;owned\x9b5mb" in shown.replace("\n", "")
    assert not {*shown} & {chr(code) for code in (*range(10), *range(11, 32), *range(127, 160))}
    refused = cli("quantize", "no\x1b[2Jsuch", "--data", "demo:val", "--out", tmp_path / "q").err
    assert "\x1b" not in refused and r"\x1b[2J" in refused
    assert json.loads(cli("inspect", tmp_path / "x", "--json").out)["facts"] == facts


def test_report_prints_the_ledger_or_json(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path)
    shown = cli("report", tmp_path)
    assert shown.code == 0
    assert "14,212,097" in shown.out and "8.29 times as fast" in shown.out and "report.html" in shown.out
    last = cli("report", tmp_path, "--json").out.splitlines()[-1]
    assert json.loads(last)["rows"][0]["row"] == "teacher"
    assert ", " not in last.split('"headlines"')[0][:200]


def test_report_is_reused(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path)
    cli("report", tmp_path)
    before = (tmp_path / "report" / "report.html").stat().st_mtime_ns
    assert "reused" in cli("report", tmp_path).err
    assert (tmp_path / "report" / "report.html").stat().st_mtime_ns == before


def test_commands_are_short() -> None:
    """Parse, call one function, print: at most ten lines each."""
    import ast

    files = [Path(program.__file__), *Path(commands.__file__).parent.glob("*.py")]
    for node in (node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.FunctionDef):
            statements = node.body[1:] if ast.get_docstring(node) else node.body
            lines = statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0
            assert lines <= 10 or node.name == "main", node.name


def test_json_is_alone_on_stdout_in_a_new_process(tmp_path: Path) -> None:
    make_run(tmp_path)
    environment = {**os.environ, "COLUMNS": "40"}
    done = subprocess.run(
        [*ENTRY, "report", str(tmp_path), "--json"], capture_output=True, text=True, check=True, env=environment
    )
    assert json.loads(done.stdout)["schema"] == 2
    assert "done in" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "report.json", "--max", "p99_ms=nan"),
        ("check", "report.json", "--min-speedup", "nan"),
        ("compare", "a", "b", "--seconds", "nan"),
        ("compare", "a", "b", "--seconds", "inf"),
    ],
)
def test_a_limit_that_is_no_number_is_bad_usage(arguments: tuple[str, ...], cli: Cli) -> None:
    done = cli(*arguments)
    assert done.code == 2 and ("finite number" in done.err or "Invalid value for '--seconds'" in done.err)


def test_threads_of_openmp_sleep_while_they_wait_unless_told_otherwise(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    cli("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    cli("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "passive"

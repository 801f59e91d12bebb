"""`mmcompress remote` against OpenSSH's server on loopback, as the current user, with keys and a config of its own."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from toy_artifact import MakeArtifact, make_artifact

from mmcompress.artifact import Artifact
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.manifest import Kind
from mmcompress.pack import pack
from mmcompress.pipeline import remote
from mmcompress.pipeline.ssh import Answer, Host, check, connected
from mmcompress.runtime.passport import stated_passport

__all__ = ["make_artifact"]
Cli = Callable[..., Any]
ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
QUICK = (
    *("--backend", "onnxruntime", "--batches", "1", "--threads", "1", "--rounds", "4", "--seconds", "0.02"),
    *("--photo", "none", "--ceiling", "false"),
)


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    ssh: str
    """The client, with its config."""
    config: Path
    programs: Path
    """What PATH begins with there."""
    cache: Path

    def program(self, name: str, *lines: str) -> None:
        path = self.programs / name
        path.write_text("\n".join(("#!/bin/sh", *lines, "")))
        path.chmod(0o755)

    def sent(self) -> list[str]:
        return sorted(path.name for path in (self.cache / "remote").iterdir())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A device that has this mmcompress; its cache's name has a blank and a quote."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's server and client: apt install openssh-server")
    if os.getuid() == 0 and not Path("/run/sshd").is_dir():
        pytest.skip("as root sshd wants /run/sshd: mkdir /run/sshd")
    folder = tmp_path / "sshd"
    programs, cache = folder / "bin", folder / "a 'device' cache"
    programs.mkdir(parents=True)
    for key in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copyfile(folder / "user.pub", folder / "authorized")
    (folder / "authorized").chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{programs}:/usr/bin:/bin"
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f'SetEnv PATH={path} "MMCOMPRESS_CACHE={cache}" PYTHONPATH={ROOT / "src"} OMP_NUM_THREADS=1\n'
    )
    public = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    config = folder / "config"
    config.write_text(
        f"Host device\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  BatchMode yes\n  UserKnownHostsFile {folder / 'known_hosts'}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        made = Server(process, f"ssh -F {config}", config, programs, cache)
        made.program("mmcompress", f'exec {sys.executable} -m mmcompress "$@"')
        yield made
    finally:
        process.kill()
        process.wait()


def there(server: Server, **options: Any) -> remote.There:
    return remote.There("device", server.ssh, **options)


def test_bench_there_brings_its_figures_here_and_cleans_up(
    server: Server, make_artifact: MakeArtifact, tmp_path: Path, cli: Cli
) -> None:
    source = make_artifact("it's a model")
    pack(source.path, tmp_path / "model.mmc")
    reached = ("device", tmp_path / "model.mmc", "--ssh", server.ssh)
    made = cli("remote", "bench", *reached, "--out", tmp_path / "b $(x)", *QUICK, "--json")
    assert made.code == 0, made.err
    bench = Artifact.open(tmp_path / "b $(x)")
    assert json.loads(made.out.splitlines()[-1])["digest"] == bench.digest
    assert (bench.manifest.stage, set(bench.manifest.parents.values())) == ("bench", {source.digest})
    assert json.loads((bench.path / "bench.json").read_text())["rows"][0]["row"] == "model", "as the user calls it"
    assert server.sent() == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_rows_have_the_names_of_what_was_sent(server: Server, make_artifact: MakeArtifact, tmp_path: Path) -> None:
    sources = [make_artifact(name).path for name in ("fp32", "a/small", "b/small")]
    bench = remote.run_stage(there(server), "bench", [*map(str, sources), *QUICK], tmp_path / "bench")
    rows = json.loads((bench.path / "bench.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["fp32", "small-0", "small-1"]
    assert server.sent() == []


def test_what_is_kept_there_is_not_sent_again(
    server: Server, make_artifact: MakeArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_artifact().path
    first = remote.run_stage(there(server, keep=True), "bench", [str(source), *QUICK], tmp_path / "b")
    kept = server.sent()
    assert len(kept) == 2 and not [name for name in kept if name.endswith(".mmc")]
    monkeypatch.delattr(Host, "send")
    shutil.rmtree(tmp_path / "b")
    again = remote.run_stage(there(server), "bench", [str(source), *QUICK], tmp_path / "b")
    assert again.manifest == first.manifest
    assert server.sent() == []


def test_copying_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "here").write_bytes(content)
    with connected("device", server.ssh) as host:
        for begun in (b"", content[:1_000_001], content, content + b"more"):
            place = tmp_path / "it's there"
            place.write_bytes(begun)
            with (tmp_path / "here").open("rb") as stream:
                host.send(stream, len(content), str(place))
            assert place.read_bytes() == content
        for begun in (b"", content[:1_000_001], content):
            (tmp_path / "back").write_bytes(begun)
            host.receive(str(place), tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == content


def test_a_begin_of_something_else_is_sent_anew(server: Server, make_artifact: MakeArtifact, tmp_path: Path) -> None:
    source = make_artifact()
    with remote.on(there(server)) as device:
        seal = source.manifest.compute_seal()[:32]
        (server.cache / "remote" / f"{seal}.mmc").write_bytes(b"x" * 5000)
        path = tmp_path / "model.mmc"
        assert remote._sent(device, path, pack(source.path, path), "model") == f"{seal}/model"
    assert Artifact.open(server.cache / "remote" / seal / "model").digest == source.digest


def test_errors_there_are_errors_here_with_their_code(
    server: Server, make_artifact: MakeArtifact, tmp_path: Path, cli: Cli
) -> None:
    reached = ("device", make_artifact().path, "--ssh", server.ssh, "--out", tmp_path / "b")
    done = cli("remote", "bench", *reached, "--threads", "many")
    assert done.code == 2 and done.err.count("error: on device: ") == 1 and "hint: " in done.err
    done = cli("remote", "build", *reached, "--backend", "tensorrt", "--target", "native")
    assert done.code == 3 and "error: on device: " in done.err
    assert not (tmp_path / "b").exists()


def test_doctor_there(server: Server, cli: Cli) -> None:
    done = cli("remote", "doctor", "device", "--ssh", server.ssh, "--json")
    assert done.code == 0 and {"mmcompress", "backends"} <= json.loads(done.out).keys()


@pytest.mark.parametrize(
    ("program", "what"),
    [
        (None, "there is no `mmcompress` on device"),
        ("echo 0.0.1", "device has mmcompress 0.0.1, and here is"),
        ("echo broken >&2; exit 1", "fails on device: broken"),
    ],
)
def test_a_device_without_our_mmcompress(server: Server, program: str | None, what: str) -> None:
    (server.programs / "mmcompress").unlink()
    if program:
        server.program("mmcompress", program)
    with pytest.raises(MissingRequirementError, match=what), remote.on(there(server)):
        pass


def test_an_old_mmcompress_of_the_same_version(server: Server, make_artifact: MakeArtifact, tmp_path: Path) -> None:
    from mmcompress import __version__

    server.program(
        "mmcompress", f"[ $1 = --version ] && echo {__version__} && exit", "echo No such command >&2; exit 2"
    )
    with pytest.raises(MissingRequirementError, match="knows no 'unpack': it is an old one"):
        remote.run_stage(there(server), "bench", [str(make_artifact().path)], tmp_path / "b")


def test_no_connection_says_why(server: Server, tmp_path: Path) -> None:
    def refused(ssh: str, host: str = "device") -> MissingRequirementError:
        with pytest.raises(MissingRequirementError) as raised, connected(host, ssh):
            pass
        return raised.value

    assert "install OpenSSH's client" in refused("no-such-ssh").hint
    stranger = refused(f"{server.ssh} -o IdentityFile={tmp_path / 'sshd' / 'stranger'} -o IdentitiesOnly=yes -F none")
    assert "no connection to device" in stranger.what
    config = server.config.read_text()
    server.config.write_text(config.replace("sshd/user", "sshd/stranger"))
    assert "it takes none of your keys" in refused(server.ssh).hint
    server.config.write_text(config.replace("known_hosts", "nobody"))
    assert "its key is not known" in refused(server.ssh).hint
    server.config.write_text(config)
    known = tmp_path / "sshd" / "known_hosts"
    other = (tmp_path / "sshd" / "stranger.pub").read_text()
    known.write_text(f"{known.read_text().split()[0]} {other}")
    assert "its key is another one" in refused(server.ssh).hint
    server.process.kill()
    server.process.wait()
    assert "nothing answers there" in refused(server.ssh).hint
    with pytest.raises(UsageError, match="not the name of a host"), connected("-oProxyCommand=touch x", server.ssh):
        pass


def test_an_ssh_that_is_no_command() -> None:
    with pytest.raises(UsageError, match="no command: No closing quotation"), connected("device", "ssh 'unclosed"):
        pass


def test_what_is_no_subject_of_a_command_is_not_sent(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    source = make_artifact("r", kind=Kind.REPORT).path
    with pytest.raises(UsageError, match="kind 'report'"):
        remote.run_stage(remote.There("nowhere.invalid"), "bench", [str(source)], tmp_path / "b")


def test_a_wrong_option_is_told_out_of_its_box() -> None:
    box = "\u256d\u2500 Error \u2500\u256e\n\u2502 No such option: --tarjet \u2502\n\u2570\u2500\u2500\u256f\n"
    with pytest.raises(UsageError, match=r"^on device: No such option: --tarjet"):
        check(Answer(2, "", box), "device")


def test_a_lost_connection_is_said_and_ends_what_runs_there(
    server: Server, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    running = tmp_path / "running"
    real = f'exec {sys.executable} -m mmcompress "$@"'
    server.program("mmcompress", f"[ $1 = bench ] && echo $$ > {running} && exec sleep 600", real)
    raised: list[BaseException] = []

    def bench() -> None:
        try:
            remote.run_stage(there(server), "bench", [str(make_artifact().path)], tmp_path / "b")
        except MissingRequirementError as error:
            raised.append(error)

    thread = threading.Thread(target=bench)
    thread.start()
    while not (running.exists() and running.read_text().strip()):
        assert thread.is_alive()
        time.sleep(0.05)
    for session in psutil.Process(server.process.pid).children():
        session.kill()
    thread.join(60)
    (error,) = raised
    assert isinstance(error, MissingRequirementError) and "the connection was lost" in error.hint
    wait_for_the_end_of(int(running.read_text()))
    server.program("mmcompress", real)
    assert remote.run_stage(there(server), "bench", [str(tmp_path / "student"), *QUICK], tmp_path / "b")
    assert server.sent() == []


def wait_for_the_end_of(job: int) -> None:
    for _ in range(200):
        if not psutil.pid_exists(job) or psutil.Process(job).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("what ran there goes on")


@pytest.mark.parametrize(("number", "left"), [(signal.SIGTERM, []), (signal.SIGKILL, [".b.sending"])])
def test_a_command_that_is_ended_ends_what_runs_there(
    server: Server, make_artifact: MakeArtifact, tmp_path: Path, number: signal.Signals, left: list[str]
) -> None:
    running = tmp_path / "running"
    real = f'exec {sys.executable} -m mmcompress "$@"'
    server.program("mmcompress", f"[ $1 = bench ] && echo $$ > {running} && exec sleep 600", real)
    words = ["remote", "bench", "device", str(make_artifact().path), "--ssh", server.ssh, "--out", str(tmp_path / "b")]
    with subprocess.Popen([sys.executable, "-m", "mmcompress", *words], stderr=subprocess.PIPE) as here:
        while not (running.exists() and running.read_text().strip()):
            assert here.poll() is None, here.stderr and here.stderr.read()
            time.sleep(0.05)
        here.send_signal(number)
        assert here.wait(60) == (128 + number if number == signal.SIGTERM else -number)
    wait_for_the_end_of(int(running.read_text()))
    hidden = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".") and path.is_dir())
    assert hidden == left
    server.program("mmcompress", real)
    assert remote.run_stage(there(server), "bench", [str(tmp_path / "student"), *QUICK], tmp_path / "b")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_engines_that_are_built_there_come_back_with_their_passports(
    server: Server, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    source = make_artifact().path
    words = [str(source), "--backend", "tensorrt-rtx", "--target", "sm89"]
    engine = remote.run_stage(there(server), "build", words, tmp_path / "engine")
    assert engine.manifest.kind is Kind.ENGINE
    for graph in engine.manifest.graphs:
        passport = stated_passport(engine.manifest, graph)
        assert passport is not None and passport.built_on.target == graph.target == "sm89"


@pytest.fixture(scope="session")
def device_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mmcompress as a device has it: its wheel and ONNX Runtime on Python 3.10, without torch."""
    pythons = [shutil.which("python3.10"), *Path("~/.pyenv/versions").expanduser().glob("3.10.*/bin/python")]
    python = next(
        (str(p) for p in reversed(pythons) if p and not subprocess.run([p, "-c", "import venv"]).returncode), None
    )
    if python is None:
        pytest.skip("needs Python 3.10")
    folder = tmp_path_factory.mktemp("device")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "tree" / name)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True, env=environment)
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    wanted = [f"{folder / 'tree'}[onnxruntime]", "-c", ROOT / "constraints.txt"]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True, env=environment)
    if done.returncode:
        pytest.skip(f"pip cannot install it: {done.stderr.strip()[-300:]}")
    return folder / "venv" / "bin"


@pytest.mark.slow
@pytest.mark.network
def test_a_device_without_torch_on_python_3_10(
    server: Server, device_install: Path, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    python = device_install / "python"
    lacks = "import importlib.util as u, sys; print(sys.version_info[:2], u.find_spec('torch'), u.find_spec('onnx'))"
    found = subprocess.run([python, "-I", "-c", lacks], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "(3, 10) None None"
    (server.programs / "mmcompress").unlink()
    command = f"env -u PYTHONPATH {device_install / 'mmcompress'}"
    source = make_artifact(precisions=("fp32", "int8"))
    bench = remote.run_stage(there(server, command=command), "bench", [str(source.path), *QUICK], tmp_path / "b")
    assert bench.manifest.environment["python"].startswith("3.10.")
    assert "torch" not in bench.manifest.environment
    told = remote.doctor(there(server, command=command), ["--backend", "onnxruntime"])
    assert told.code == 0 and "onnxruntime" in told.out

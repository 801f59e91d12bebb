"""Commands that run on another machine."""

from __future__ import annotations

from typing import Annotated

import typer

from mmcompress.cli.commands.app import (
    USE,
    Json,
    Out,
    app,
)
from mmcompress.cli.options import SETTINGS

remote = typer.Typer(name="remote", no_args_is_help=True, context_settings=SETTINGS)
app.add_typer(remote, rich_help_panel=USE)
PASSING_ON = {**SETTINGS, "allow_extra_args": True, "ignore_unknown_options": True}
"""What is no option of ours is one of the command there."""
HostName = Annotated[str, typer.Argument(metavar="USER@HOST", help="As ssh knows it; give it first.")]
Ssh = Annotated[str, typer.Option("--ssh", help="The program, with options of its own: 'ssh -p 2222'.")]
CommandThere = Annotated[str, typer.Option("--command", help="mmcompress there: '~/venv/bin/mmcompress'.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave there what was sent and made, for the next command.")]


@remote.callback()
def remote_commands() -> None:
    """Run `doctor`, `build`, `bench` or `drift` on another machine, over ssh: `remote bench USER@HOST int8 --out b`."""


@remote.command("doctor", context_settings=PASSING_ON)
def remote_doctor(
    rest: typer.Context, host: HostName, client: Ssh = "ssh", command: CommandThere = "mmcompress", json: Json = False
) -> None:
    """Show what works there. Other options are those of `doctor`."""
    from mmcompress.pipeline import remote, ssh

    answer = remote.doctor(remote.There(host, client, command), [*rest.args, *(["--json"] if json else [])])
    print(answer.out, end="")
    ssh.check(answer, host)


def remote_stage(
    rest: typer.Context,
    host: HostName,
    out: Out,
    client: Ssh = "ssh",
    command: CommandThere = "mmcompress",
    keep: Keep = False,
    json: Json = False,
) -> None:
    """The command that was asked for, run there on what is sent."""
    from mmcompress.cli import console
    from mmcompress.pipeline import remote

    there = remote.There(host, client, command, keep)
    artifact = remote.run_stage(there, str(rest.info_name), rest.args, out)
    console.show(*console.artifact_summary(artifact), json)


for stage, does in {
    "build": "Send an ONNX artifact, build engines of it there, and bring them here with their passports.",
    "bench": "Send artifacts, measure their latency there, and bring the figures here.",
    "drift": "Send artifacts, measure accuracy and distances there, and bring the figures here.",
}.items():
    usage = (
        f"After USER@HOST come artifacts or packs, then options of `{stage}`; paths in those are of the machine there."
    )
    remote.command(stage, context_settings=PASSING_ON, help=f"{does}\n\n{usage}")(remote_stage)

"""An option of a command is a key of a config: its name, its help, its default and its choices are the key's own.

From argv to a stage in three hops: `commands.prune` says where its keys are (`@keyed(…, "prune")`) and gets those that
were said as `given`, a mapping from dotted keys to values; `standalone.prune` finds the sources that nobody named;
`run_single` has the config check everything and runs the stage. `--set KEY=VALUE` ends in the same mapping.

Configs take pydantic, half of the time that a start may take, so `mmcompress --help` does without: `Commands` gives a
command its options when that command is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmcompress.cli.completion import BY_PATH, of, settings

if TYPE_CHECKING:
    from mmcompress.cli.keys import Key

Function = Callable[..., None]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: prune.mlp=0.4.", autocompletion=settings),
]
ALIASES = {"precisions": "--precision", "targets": "--target", "backends": "--backend"}
"""The singular, for what is said once mostly; all may be repeated."""
SETTINGS = {"help_option_names": ["-h", "--help"]}
_KEYED: dict[str, Callable[[], Function]] = {}
"""What makes the complete function of each command that has keys."""


def keyed(
    app: typer.Typer, panel: str, *places: str, without: Sequence[str] = (), required: Sequence[str] = ()
) -> Callable[[Function], Function]:
    """Make a command of a function that takes `given`: every key at some places is an option, besides its own ones.

    A place is a stage (`prune`) or a table of one (`report.gates`); the first is the command's own, the others are
    stages that it may have to run before. `without` are keys that are said in another way,
    `required` the options that the command cannot do without.
    """

    def register(function: Function) -> Function:
        def listed() -> None: ...

        listed.__name__, listed.__doc__ = function.__name__, function.__doc__
        app.command(rich_help_panel=panel)(listed)
        _KEYED[function.__name__.replace("_", "-")] = lambda: with_options(function, places, without, required)
        return function

    return register


class Commands(TyperGroup):
    """Gives a command the options of its config when it runs or is asked for help."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in _KEYED:
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=SETTINGS)
            alone.command(name)(_KEYED[name]())
            command = typer.main.get_command(alone)
        return name, command, rest


def with_options(
    function: Function, places: Sequence[str], without: Sequence[str] = (), required: Sequence[str] = ()
) -> Function:
    """The function with its `given` spelled out in the signature, as typer reads it."""
    from mmcompress.cli.keys import keys_of_all, merged

    keys = {_parameter_name(key): key for key in keys_of_all(places, without)}
    stages = [place for place in places if "." not in place]
    own = dict(inspect.signature(function, eval_str=True).parameters)
    del own["given"]

    def call(typer_context: typer.Context, **said: Any) -> None:
        options = {key: key.value(said[name]) for name, key in keys.items() if _is_said(typer_context, name)}
        given = merged(options, said.get("set_") or (), stages, without)
        function(**{name: said[name] for name in own}, given=given)

    parameters = [inspect.Parameter("typer_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [own[name] for name in own if name != "json"]
    parameters += [_parameter(name, key, key.option in required) for name, key in keys.items()]
    if stages:
        parameters.append(inspect.Parameter("set_", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Set))
    parameters.append(own["json"])
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    call.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    call.__name__, call.__doc__ = function.__name__, function.__doc__
    return call


def _is_said(context: typer.Context, name: str) -> bool:
    """A default is shown, but not handed over: what nobody said may be inherited from an artifact."""
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _parameter_name(key: Key) -> str:
    return key.path.replace(".", "__")


def _parameter(name: str, key: Key, required: bool) -> inspect.Parameter:
    """A flag, a list of texts or a text, for the config to make the value of. What is on needs words to go off."""
    flag = key.default is False
    kind: Any = bool if flag else list[str] if key.several else str
    names = [key.option, *([ALIASES[key.path]] if key.path in ALIASES else [])]
    option = typer.Option(
        *names,
        help=key.help.replace("[", r"\["),
        metavar=None if flag else key.metavar,
        rich_help_panel=f"Options of {key.table}" if key.table else None,
        autocompletion=BY_PATH.get(key.path) or (of(map(str, key.choices)) if key.choices else None),
    )
    default: Any = key.default
    if required:
        default = inspect.Parameter.empty
    elif default is not None and not flag:
        default = [str(part) for part in default] or None if key.several else shown(default)
    annotation: Any = Annotated[kind if required else kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def shown(default: object) -> str:
    """As it would be said: `true`, `1`, `0.005`."""
    return str(default).lower() if isinstance(default, bool) else str(default).removesuffix(".0")

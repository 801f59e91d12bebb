"""The keys of a config as a command line has them: what each is called, what it says of itself, how its words are read.

A key `lr` of a table `optimizer` is `--optimizer-lr`. The tables that recipes share keep short names: `--teacher` and
`--student` are their `source`, `--data` is the field of the data table that the stage reads first, and its other fields
are options by their own names. Words become numbers, texts and lists here; the config says whether they are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from mmcompress.config import StageConfig
from mmcompress.datakeys import with_keys_in
from mmcompress.errors import UsageError
from mmcompress.pipeline.recipe import DATA_FIELDS, SHARED_TABLES, parse_assignments
from mmcompress.stages import STAGES
from mmcompress.strictjson import json_from_text

NOTHING = ("none", "null", "any")
"""What says None, of a key that can be None."""
WORDS = {str: "TEXT", float: "NUMBER", int: "WHOLE", bool: "true|false", type(None): "none"}


@dataclass(frozen=True, eq=False)
class Key:
    """A key of a config as an option."""

    path: str
    """`optimizer.lr`"""
    option: str
    """`--optimizer-lr`"""
    annotation: Any
    docstring: str
    default: Any

    @property
    def kinds(self) -> tuple[Any, ...]:
        return _alternatives(self.annotation)

    @property
    def several(self) -> bool:
        return any(get_origin(kind) in (tuple, dict) for kind in self.kinds)

    @property
    def table(self) -> str | None:
        """The table whose name the option has before its own."""
        above = self.path.rpartition(".")[0]
        return above if above and self.option.startswith(f"--{above}-") else None

    @property
    def metavar(self) -> str:
        return "|".join(_metavar(kind) for kind in self.kinds if not (kind is type(None) and str in self.kinds))

    @property
    def choices(self) -> tuple[Any, ...]:
        return _choices(self.kinds)

    @property
    def help(self) -> str:
        """The docstring, and what there is to choose from."""
        choices = ", ".join(map(str, self.choices))
        return f"{self.docstring} One of {choices}." if choices else self.docstring

    def value(self, said: Any) -> Any:
        """From the words of the command line, for the config to check: what is no number stays text."""
        if type(None) in self.kinds and (said[0] if isinstance(said, list) and len(said) == 1 else said) in NOTHING:
            return None
        collection = next((kind for kind in self.kinds if get_origin(kind) in (tuple, dict)), None)
        if collection is None:
            return _scalar(said, self.kinds)
        if get_origin(collection) is dict:
            limits = [self._limit(text) for text in said]
            names = [name for name, _ in limits]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise UsageError(f"{self.option} gives {repeated[0] or 'a limit'} twice", "leave one of them out")
            return dict(limits)
        if len(said) == 1 and said[0].startswith("["):
            return _scalar(said[0], ())
        if [text.strip() for text in said] in ([""], ["none"], ["[]"]):
            return []
        parts = [part.strip() for text in said for part in text.split(",")]
        return [_scalar(part, _alternatives(get_args(collection)[0])) for part in parts]

    def _limit(self, text: str) -> tuple[str, Any]:
        """`p99_ms=5` -> `("p99_ms", 5)`; a bare number has no name."""
        name, _, number = text.rpartition("=")
        try:
            float(number)
        except ValueError:
            raise UsageError(
                f"{self.option} {text!r} is not METRIC=NUMBER", f"for example: {self.option} i2t_r10=0.01"
            ) from None
        return name.strip(), _scalar(number, ())


def keys_of(place: str, without: Sequence[str] = ()) -> list[Key]:
    """The keys of a stage's config (`prune`), or of one of its tables (`report.gates`), but for those of `without`.

    What is worked on stands first, what every stage has last.
    """
    stage, _, table = place.partition(".")
    reads = STAGES[stage].reads
    model: Any = STAGES[stage].config
    keys = []
    for path, annotation, docstring, default in _fields(model.model_fields[table].annotation if table else model):
        above, _, name = path.rpartition(".")
        unread = above == "data" and name in DATA_FIELDS and name not in reads
        if unread or any(path == left or path.startswith(f"{left}.") for left in without):
            continue
        option = f"--{path.replace('.', '-').replace('_', '-')}"
        if above == "data" and name in DATA_FIELDS:
            option = "--data" if name == reads[0] else f"--{name}"
        elif name == "source":
            option = f"--{above}"
        keys.append(Key(path, option, annotation, " ".join(docstring.split()), default))
    return sorted(
        keys,
        key=lambda key: (
            key.option != "--data",
            key.path.split(".")[0] not in SHARED_TABLES,
            key.path in StageConfig.model_fields,
        ),
    )


def keys_of_all(places: Sequence[str], without: Sequence[str] = ()) -> list[Key]:
    """The keys of a command's own place, and behind them those of the stages that it may run before.

    What they share is one key. Of the others, shared tables keep their names, and what only `embed` has is
    `--embed-views`.
    """
    own, *others = places
    keys = {key.path: key for key in keys_of(own, without)}
    for place in others:
        for key in keys_of(place, without):
            first = keys.get(key.path)
            alike = first is not None and _meaning(first) == _meaning(key)
            if key.path.split(".")[0] in SHARED_TABLES or key.path in StageConfig.model_fields or alike:
                keys.setdefault(key.path, key)
            else:
                prefixed = replace(key, path=f"{place}.{key.path}", option=f"--{place}{key.option[1:]}")
                keys[prefixed.path] = prefixed
    return list(keys.values())


def _meaning(key: Key) -> tuple[Any, ...]:
    return key.annotation, key.docstring, key.default


def _fields(
    model: type[BaseModel], table: BaseModel | None = None, above: str = ""
) -> Iterator[tuple[str, Any, str, Any]]:
    """(dotted path, annotation, docstring, default) of every key, those of nested tables too."""
    for name, field in model.model_fields.items():
        own = None if field.is_required() else field.get_default(call_default_factory=True)
        default = own if table is None else getattr(table, name)
        kinds = _alternatives(field.annotation)
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if nested:
            yield from _fields(nested[0], default, f"{above}{name}.")
        else:
            yield f"{above}{name}", field.annotation, field.description or "", default


def merged(
    options: Mapping[Key, Any], assignments: Sequence[str], stages: Sequence[str] = (), without: Sequence[str] = ()
) -> dict[str, Any]:
    """Options and `--set` together, by dotted key; `prune.mlp` is `mlp` of the command's own stage, the first one.

    Raises UsageError where the two say different things, and for what no stage of the command reads.
    """
    given = {key.path: value for key, value in options.items()}
    for text, value in parse_assignments(assignments).items():
        head, _, rest = text.partition(".")
        path = rest if head in stages[:1] and rest and rest.partition(".")[0] not in without else text
        _check_read(text, path, stages, without)
        for key, said in options.items():
            nested = key.path.startswith(f"{path}.") or path.startswith(f"{key.path}.")
            if nested or (key.path == path and said != value):
                raise UsageError(f"{key.option} and --set {text} both give {path}", "leave one of them out")
        given[path] = value
    return with_keys_in(given, "data.") or given


def _check_read(text: str, path: str, stages: Sequence[str], without: Sequence[str]) -> None:
    """Raise UsageError for a key whose value another argument gives, or which none of the stages reads."""
    head, _, rest = path.partition(".")
    own, key = ([head], rest) if head in stages and rest else (stages, path)
    if key in without:
        raise UsageError(f"--set {text}: the command's own argument says that", "leave --set out")
    table, _, field = key.partition(".")
    if table != "data" or field not in DATA_FIELDS or not own:
        return
    read = list(dict.fromkeys(name for stage in own for name in STAGES[stage].reads))
    if field not in read:
        known = ", ".join(f"data.{name}" for name in read) or "no data"
        raise UsageError(f"--set {text} would be ignored: {' and '.join(own)} read {known}", "leave it out")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """`Share | None` -> `(float, NoneType)`"""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _alternatives(part))
    return (annotation,)


def _scalar(said: Any, kinds: Sequence[Any]) -> Any:
    """Text where the key is one, else what JSON reads, else text for the config to refuse."""
    if not isinstance(said, str) or str in kinds or _choices(kinds):
        return said
    try:
        return json_from_text(said)
    except ValueError:
        return said


def _choices(kinds: Sequence[Any]) -> tuple[Any, ...]:
    for kind in kinds:
        if get_origin(kind) is Literal:
            return get_args(kind)
        if get_origin(kind) is tuple and (choices := _choices(_alternatives(get_args(kind)[0]))):
            return choices
    return ()


def _metavar(kind: Any) -> str:
    """`NUMBER`, `WHOLE,…`, `METRIC=NUMBER`; choices are told in the help, where there is room."""
    if get_origin(kind) is tuple:
        return f"{_metavar(_alternatives(get_args(kind)[0])[0])},…"
    if get_origin(kind) is dict:
        return "METRIC=NUMBER"
    return "CHOICE" if get_origin(kind) is Literal else WORDS[kind]

"""Errors a user can act on, and the exit code each one ends the command with.

An error says what was received, what was expected and what to do. It is raised where the fact is known; only
`cli.main` prints it. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable
from types import ModuleType

LISTED, NEAREST = 40, 6
"""How many names an error lists, and how many of more than these."""


class MMCompressError(Exception):
    """A failure that the user can mend. `what` happened and was expected; `hint` says what to do."""

    exit_code = 2

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class GateFailedError(MMCompressError):
    """A measured figure is outside the limit that the user set."""

    exit_code = 1


class UsageError(MMCompressError):
    """A wrong argument, path or recipe."""

    exit_code = 2


class MissingRequirementError(MMCompressError):
    """A package, driver, device or download that is not there."""

    exit_code = 3


class CorruptInputError(MMCompressError):
    """A file whose content is damaged, or does not belong to what it is used with."""

    exit_code = 4


class StoppedError(MMCompressError):
    """A scheduler asked a run to stop; its state is written, and the same command goes on there.

    The code is EX_TEMPFAIL of sysexits.h, "try again later": a job script requeues on it, and on no other.
    """

    exit_code = 75


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "did you mean …?" for a misspelt word, else the list of what is known, or of a long one the nearest."""
    known = sorted(known)
    if close := difflib.get_close_matches(word, known, n=1):
        return f"did you mean {close[0]!r}?"
    if len(known) <= LISTED:
        return f"known: {', '.join(known)}"
    nearest = difflib.get_close_matches(word, known, n=NEAREST, cutoff=0.0)
    return f"there are {len(known)}, the nearest are {', '.join(nearest)}"


def of_choices(word: str, choices: Iterable[str]) -> str:
    """ "did you mean …?" of the few values that an option takes, or the list of them."""
    choices = sorted(choices)
    return f"did you mean {near!r}?" if (near := nearest_choice(word, choices)) else f"known: {', '.join(choices)}"


def nearest_choice(word: str, choices: Iterable[str]) -> str | None:
    """The value that a word misspells or abbreviates (`bf16` of bfloat16, `ort` of onnxruntime, `float16` of fp16).

    An abbreviation is a part of the value, or has its first letter and others in their order, or its first letter and
    the digits that it ends with; of several values the shortest, if the others only go on behind it.
    """
    said, folded = word.casefold(), {choice.casefold(): choice for choice in choices}
    if said in folded:
        return folded[said]
    if close := difflib.get_close_matches(said, folded, n=1, cutoff=0.8):
        return folded[close[0]]
    if short := sorted((name for name in folded if _abbreviates(said, name)), key=len):
        return folded[short[0]] if all(name.startswith(short[0]) for name in short) else None
    close = difflib.get_close_matches(said, folded, n=1)
    return folded[close[0]] if close else None


def _abbreviates(word: str, name: str) -> bool:
    if len(word) < 2 or not name:
        return False
    letters = iter(name)
    in_order = all(letter in letters for letter in word)
    same_digits = _digits(word) == _digits(name) != ""
    return word in name or (word[0] == name[0] and (in_order or same_digits))


def _digits(word: str) -> str:
    """Those that it ends with."""
    return word[len(word.rstrip("0123456789")) :]


class MisspeltError(ValueError):
    """A name that is not known, for a validator: `hint` lists those that are near it."""

    def __init__(self, said: str, word: str, known: Iterable[str]) -> None:
        known = sorted(known)
        super().__init__(f"{said}; {suggestion(word, known)}")
        near = [name for name in known if word in name] + difflib.get_close_matches(word, known, n=NEAREST, cutoff=0.5)
        near = near or difflib.get_close_matches(word, known, n=NEAREST, cutoff=0.0)
        self.hint = f"near names: {', '.join(list(dict.fromkeys(near))[:NEAREST])}"


def memory_error(error: BaseException) -> UsageError | None:
    """What to tell where memory was asked for that is not there, by numpy, torch or Python; None of any other error."""
    asked = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not asked and "can't allocate memory" not in str(error):
        return None
    said = str(error).splitlines()[0] if str(error) else "more was asked for than there is"
    return UsageError(
        f"there is not enough memory: {said}",
        "let it take less at once: a smaller batch, fewer samples or views, smaller images",
    )


def finite(value: float, what: str) -> float:
    """The value; CorruptInputError where it is NaN, which compares as false with every limit, or infinite."""
    if not math.isfinite(value):
        raise CorruptInputError(f"{what} is {value}, expected a finite number", "the model or its data is broken")
    return value


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which `pip install` brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingRequirementError(
            f"this needs the Python package {module.split('.')[0]!r}, which cannot be imported ({error})",
            f"pip install 'mmcompress[{extra}]'",
        ) from error

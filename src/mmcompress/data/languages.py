"""Which language is a caption in? By py3langid, where it is installed; a caption of a few letters tells none.

py3langid (after Lui and Baldwin 2012, langid.py) is 5 MB of arrays without a pickle, and reads some 40,000 captions a
second. Short of a sentence it guesses: `a dog` is Croatian to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from mmcompress.errors import MissingRequirementError

SHORT = "too short"
_FEWEST_BYTES = 15


def language_teller() -> Callable[[str], str]:
    """What gives a text's language as its ISO 639 code, or SHORT. MissingRequirementError where nothing can."""
    try:
        from py3langid import classify
    except ImportError as error:
        raise MissingRequirementError(
            f"telling languages needs the Python package py3langid, which cannot be imported ({error})",
            "pip install 'mmcompress[languages]'",
        ) from error
    return lambda text: cast(str, classify(text)[0]) if len(text.encode()) >= _FEWEST_BYTES else SHORT

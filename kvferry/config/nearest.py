"""The refusal of a name that is not known."""

import difflib
from collections.abc import Collection

from kvferry.core.errors import ConfigInvalid

_CUTOFF = 0.6


def unknown(name: str, known: Collection[str], what: str) -> ConfigInvalid:
    """``what`` is what it should have been, such as ``key``. The value is not shown: it may be a secret."""
    near = nearest(name, known)
    hint = f"; the nearest known {what} is {near!r}" if near else ""
    return ConfigInvalid(f"{name}: unknown {what}{hint}", metadata={"field": name})


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that resembles it most, in its own section first; None if none does."""
    section = name.rpartition(".")[0]
    siblings = [each for each in known if each.rpartition(".")[0] == section]
    for candidates in (siblings, known):
        if found := difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=_CUTOFF):
            return found[0]
    return None

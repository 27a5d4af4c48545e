"""Numbers as people read them, and as they type them."""

import re

from kvferry.core.errors import ConfigInvalid

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")


def size_text(count: int) -> str:
    """Bytes with a binary unit: ``64 MiB``, ``1.5 KiB``, ``17 B``."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count} B"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with two decimals."""
    return f"{seconds * 1e3:.2f}"


def rate_text(count: int, seconds: float) -> str:
    """GB/s, or a dash when no time was measured."""
    return f"{count / seconds / 1e9:.2f}" if seconds > 0 else "-"


def parse_size(field: str, text: str) -> int:
    """Bytes of ``64MiB``, ``4 KiB`` or ``4096``.

    Raises:
        ConfigInvalid: something else, or zero; names ``field`` and the text.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS or int(match[1]) == 0:
        raise ConfigInvalid.of_field(field, text, "must be a size such as 4096, 64KiB, 512MiB or 4GiB")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_blocks(field: str, text: str) -> list[int]:
    """Block ids of ``0-3,7``: 0, 1, 2, 3, 7.

    Raises:
        ConfigInvalid: something else; names ``field`` and the part at fault.
    """
    blocks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise ConfigInvalid.of_field(field, part, "must be block ids and ranges such as 0-3,7")
        blocks += range(int(match[1]), int(match[2] or match[1]) + 1)
    return blocks

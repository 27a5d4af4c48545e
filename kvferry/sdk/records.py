"""What results share: frozen values that can be written as JSON."""

from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from typing import cast


class Record:
    """Base of the frozen dataclasses that the clients give back."""

    __slots__ = ()

    def to_dict(self) -> dict[str, object]:
        """This value as what ``json.dumps`` takes; fields that ``repr`` hides are left out."""
        return cast("dict[str, object]", _plain(self))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.repr}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value

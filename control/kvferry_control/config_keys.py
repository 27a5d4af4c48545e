"""The keys of a control's configuration, as they follow from its fields."""

import types
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kvferry.config.flags import Program
from kvferry.config.keys import Key
from kvferry_control.config import ControlConfig, RankSection

RANKS = "ranks"
RANK_KEYS = frozenset(f"{RANKS}.{name}" for name in RankSection.model_fields)
"""Those of the tables in the list of ranks, which a file alone can have."""


def keys_of(section: type[BaseModel], prefix: str = "", *, required: bool = True) -> Iterator[Key]:
    """The keys of a section and of the sections in it."""
    for name, field in section.model_fields.items():
        needed = required and (field.is_required() or _section_of(field) is not None)
        inner = _section_of(field)
        if inner is not None:
            optional = type(None) in get_args(field.annotation)
            yield from keys_of(inner, f"{prefix}{name}.", required=required and not optional)
        else:
            yield _key(prefix + name, field, required=needed)


def _key(name: str, field: FieldInfo, *, required: bool) -> Key:
    is_list = get_origin(field.annotation) is tuple
    default = None if field.is_required() else field.get_default()
    text = (field.description or "").replace("``", "").replace("\n", " ")
    shown = f" (default: {_plain(default)})" if default is not None else ""
    return Key(name, _metavar(name, field), f"{text}{shown}", default, required=required, is_list=is_list)


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds; a list of tables is none."""
    for kind in _kinds(field):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _kinds(field: FieldInfo) -> tuple[object, ...]:
    annotation = field.annotation
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _metavar(name: str, field: FieldInfo) -> str:
    kind = _kinds(field)[0]
    if get_origin(kind) is tuple:
        return "ONE,TWO"
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "|".join(kind)
    if name.endswith("_s"):
        return "SECONDS"
    names = {bool: "true|false", int: "N", float: "NUMBER", Path: "FILE"}
    return next((text for each, text in names.items() if kind is each), "TEXT")


def _plain(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


PROGRAM = Program("kvferry control", "The control plane of one worker.", tuple(keys_of(ControlConfig)))

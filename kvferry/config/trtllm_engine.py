"""An engine's TensorRT-LLM configuration: what ``cache_transceiver_config`` of its file says. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from kvferry.config.values import Origin, Source
from kvferry.core.errors import ConfigInvalid

SECTION = "cache_transceiver_config"
TIMEOUT_KEY = "kv_transfer_timeout_ms"
BUFFER_KEY = "max_tokens_in_buffer"


class EngineBackend(StrEnum):
    """The values of its ``backend``."""

    DEFAULT = "DEFAULT"
    NIXL = "NIXL"
    UCX = "UCX"
    MOONCAKE = "MOONCAKE"
    MPI = "MPI"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the section says."""

    path: str
    """Of the file."""
    backend: EngineBackend | None
    """None: not set, which switches the engine's transfer off."""
    max_tokens_in_buffer: int | None
    kv_transfer_timeout_ms: int | None
    """None: not set."""
    is_unbounded: bool
    """Whether it is set to nothing, which is no time-out at all."""
    others: tuple[str, ...]
    """Keys that are the engine's alone."""

    def origin(self, key: str) -> Origin:
        """Of a value of the section."""
        return Origin(Source.FILE, f"{SECTION}.{key}", self.path)


def engine_config(path: str, values: Mapping[str, object]) -> EngineConfig:
    """Check what a file holds.

    Raises:
        ConfigInvalid: names the key and its value.
    """
    section = values.get(SECTION)
    if section is None:
        section = {}
    if not isinstance(section, Mapping):
        raise ConfigInvalid.of_field(SECTION, section, f"must be a section of keys and values, in {path}")
    known = ("backend", BUFFER_KEY, TIMEOUT_KEY)
    return EngineConfig(
        path=path,
        backend=_backend(section.get("backend"), path),
        max_tokens_in_buffer=_count(BUFFER_KEY, section.get(BUFFER_KEY), path),
        kv_transfer_timeout_ms=_count(TIMEOUT_KEY, section.get(TIMEOUT_KEY), path),
        is_unbounded=TIMEOUT_KEY in section and section[TIMEOUT_KEY] is None,
        others=tuple(str(key) for key in section if key not in known),
    )


def _backend(raw: object, path: str) -> EngineBackend | None:
    if raw is None:
        return None
    if not isinstance(raw, str) or raw not in tuple(EngineBackend):
        why = f"must be one of {', '.join(EngineBackend)}, in {path}"
        raise ConfigInvalid.of_field(f"{SECTION}.backend", raw, why)
    return EngineBackend(raw)


def _count(key: str, raw: object, path: str) -> int | None:
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, int) or raw < 1:
        raise ConfigInvalid.of_field(f"{SECTION}.{key}", raw, f"must be a whole number of at least 1, in {path}")
    return raw

"""Writes configuration files for control."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Scalar = str | int | float | bool
Section = Mapping[str, Scalar | Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """What a control is told; times in seconds."""

    name: str
    role: str
    listen: str
    engine_socket: Path
    rank_sockets: tuple[Path, ...]
    etcd_endpoints: tuple[str, ...]
    etcd_prefix: str
    lease_ttl_s: int
    metrics_listen: str | None
    log_level: str
    log_format: str = "json"
    drain_timeout_s: float = 0.0
    stall_s: float = 10.0
    limits: Section = field(default_factory=dict)
    transfers: Section = field(default_factory=dict)

    def to_toml(self) -> str:
        """The file's text."""
        worker: Section = {
            "name": self.name,
            "role": self.role,
            "listen": self.listen,
            "engine_socket": str(self.engine_socket),
        }
        etcd: Section = {
            "endpoints": self.etcd_endpoints,
            "prefix": self.etcd_prefix,
            "lease_ttl_s": self.lease_ttl_s,
        }
        parts = [_table("[worker]", worker)]
        parts += [_table("[[ranks]]", {"socket": str(path)}) for path in self.rank_sockets]
        parts.append(_table("[etcd]", etcd))
        if self.metrics_listen is not None:
            parts.append(_table("[metrics]", {"listen": self.metrics_listen}))
        if self.limits:
            parts.append(_table("[limits]", self.limits))
        if self.transfers:
            parts.append(_table("[transfers]", self.transfers))
        parts.append(_table("[log]", {"level": self.log_level, "format": self.log_format}))
        parts.append(_table("[health]", {"stall_s": self.stall_s}))
        parts.append(_table("[drain]", {"timeout_s": self.drain_timeout_s}))
        return "\n".join(parts)


def _table(header: str, values: Section) -> str:
    # JSON's strings, numbers and lists are TOML's as well, as long as no character is escaped as a pair.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join([header, *lines, ""])

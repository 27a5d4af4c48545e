"""Writes configuration files for control."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvferry.config.keys import Key

_RANKS = "ranks"

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
        ranks = [_table(f"[[{_RANKS}]]", {"socket": str(path)}) for path in self.rank_sockets]
        sections = self._sections()
        return "\n".join([*ranks, *(_table(f"[{name}]", values) for name, values in sections.items() if values)])

    def variables(self) -> list[str]:
        """The environment variables that would go before what the file says."""
        named = [f"{section}.{key}" for section, values in self._sections().items() for key in values]
        return [Key(name, "", "").variable for name in (_RANKS, *named)]

    def _sections(self) -> dict[str, Section]:
        return {
            "worker": {
                "name": self.name,
                "role": self.role,
                "listen": self.listen,
                "engine_socket": str(self.engine_socket),
            },
            "etcd": {
                "endpoints": self.etcd_endpoints,
                "prefix": self.etcd_prefix,
                "lease_ttl_s": self.lease_ttl_s,
            },
            "metrics": {} if self.metrics_listen is None else {"listen": self.metrics_listen},
            "limits": self.limits,
            "transfers": self.transfers,
            "log": {"level": self.log_level, "format": self.log_format},
            "health": {"stall_s": self.stall_s},
            "drain": {"timeout_s": self.drain_timeout_s},
        }


def _table(header: str, values: Section) -> str:
    # JSON's strings, numbers and lists are TOML's as well, as long as no character is escaped as a pair.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join([header, *lines, ""])

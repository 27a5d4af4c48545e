"""Breaks and heals the network between two namespaces, and between anybody and one port: in those namespaces only."""

import shutil
import subprocess

from kvferry.core.errors import ConfigInvalid
from kvferry.launch.namespaces import Namespace, NamespacePair

_WIRE = "wire0"
_TABLE = "chaos"
_CHAIN = "arriving"
_TIMEOUT_S = 10.0


class Network:
    """What chaos does to the wire of a pair of namespaces."""

    def __init__(self, pair: NamespacePair) -> None:
        """Raises ConfigInvalid if a program that it needs is missing."""
        self._pair = pair
        self._programs = {program: _path_of(program) for program in ("ip", "nft")}

    def cut(self) -> None:
        """Take the wire down: nothing gets through, and both sides see that it is down."""
        self._in(self._pair.source, "ip", "link", "set", _WIRE, "down")

    def deafen(self) -> None:
        """Drop what arrives over the wire on one side; what that side says still gets through."""
        self._filter(self._pair.destination, f"iifname {_WIRE} drop")

    def heal(self) -> None:
        """Bring the wire back, and let every packet through."""
        for side in (self._pair.source, self._pair.destination):
            self._in(side, "ip", "link", "set", _WIRE, "up")
            self._in(side, "nft", "add", "table", "inet", _TABLE)
            self._in(side, "nft", "delete", "table", "inet", _TABLE)

    def lose(self, percent: int) -> None:
        """Drop so many of the packets that arrive over the wire, at random, on both sides."""
        for side in (self._pair.source, self._pair.destination):
            rule = f"iifname {_WIRE} numgen random mod 100 < {percent} drop"
            self._filter(side, rule)

    def partition(self, port: int, *, both_ways: bool = True) -> None:
        """Drop whatever goes to one port of the first side, from whichever side, and what comes from it if wanted."""
        answers = [f"tcp sport {port} drop"] if both_ways else []
        self._filter(self._pair.source, f"tcp dport {port} drop", *answers)
        self._filter(self._pair.destination, *answers)

    def _filter(self, side: Namespace, *rules: str) -> None:
        self._in(side, "nft", "add", "table", "inet", _TABLE)
        self._in(side, "nft", "add", "chain", "inet", _TABLE, _CHAIN, "{ type filter hook input priority 0; }")
        for rule in rules:
            self._in(side, "nft", "add", "rule", "inet", _TABLE, _CHAIN, rule)

    def _in(self, side: Namespace, program: str, *arguments: str) -> None:
        command = [*side.launcher, self._programs[program], *arguments]
        done = subprocess.run(  # noqa: S603 - arguments made here
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise ConfigInvalid.of_field("network", "namespaces", f"{program} {' '.join(arguments)}: {done.stderr}")


def _path_of(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ConfigInvalid.of_field("network", "namespaces", f"needs the program {program}")
    return path

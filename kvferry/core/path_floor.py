"""What a worker demands of the ways on which it pulls: which ways may be taken, and how fast they must be. Pure.

A rule is ``WAY`` or ``WAY:TRANSPORT``. A way is a path (``local``, ``packed``, ``nixl``, ``ucx``), a path with what
lies below it (``nixl/UCX``, ``packed/stream``), or ``*``. A transport is a name by which the backend reports what it
used (``cma``, ``tcp``, ``rc_mlx5``), with ``*`` for any characters. With ``!`` in front a rule refuses what it fits. A
way may be taken that fits one of the other rules, if there are any, and none that refuses: ``["local", "nixl:rc_*"]``
allows two ways, ``["!*:tcp"]`` all but TCP.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from kvferry.core.errors import ConfigInvalid
from kvferry.core.pairing import Mismatch
from kvferry.core.reasons import Reason

PATHS = ("local", "packed", "nixl", "ucx")
RULES_MAX = 32
TRANSPORT_SEPARATOR = "+"
"""Between the transports of a way that uses several."""
GBYTES_PER_S_MAX = 1e6
_FIELD = "transfers.require_path"
_FLOORS_KEPT_MAX = 64
_RULE = re.compile(r"(!?)(?:(\*)|([a-z]+)(?:/([A-Za-z]+))?)(?::([a-z0-9_*]+))?")


@dataclass(frozen=True, slots=True)
class WayFacts:
    """A way between two workers, as far as it is known."""

    path: str
    backend: str
    transport: str
    """By the backend's own report; empty if it gave none."""
    gbytes_per_s: float

    @property
    def name(self) -> str:
        """For people, for example ``nixl/UCX:cma``."""
        return f"{self.path}/{self.backend}:{self.transport or 'unknown'}"


@dataclass(frozen=True, slots=True)
class PathRule:
    """One rule; ``path``, ``backend`` and ``transport`` are None where any will do."""

    refuses: bool
    path: str | None
    backend: str | None
    transport: str | None

    def fits_way(self, path: str, backend: str) -> bool:
        """Whether a way is one of the rule's, its transport left aside."""
        return self.path in (None, path) and self.backend in (None, backend)

    def fits(self, path: str, backend: str, transport: str) -> bool:
        """Whether a way is one of the rule's.

        A transport that is not known is none that a rule allows, and may be one that a rule refuses. Of several, all
        must be allowed and none refused.
        """
        if not self.fits_way(path, backend):
            return False
        if self.transport is None:
            return True
        if not transport:
            return self.refuses
        found = [fnmatchcase(name, self.transport) for name in transport.split(TRANSPORT_SEPARATOR)]
        return any(found) if self.refuses else all(found)


@dataclass(frozen=True, slots=True)
class PathFloor:
    """What is demanded; by default nothing."""

    require_path: tuple[str, ...] = ()
    rules: tuple[PathRule, ...] = ()
    """``require_path``, understood."""
    min_gbytes_per_s: float = 0.0

    @property
    def needs_attestation(self) -> bool:
        """Whether it cannot be judged without real bytes."""
        return self.min_gbytes_per_s > 0 or any(rule.transport is not None for rule in self.rules)

    @property
    def demands_something(self) -> bool:
        """Whether anything is refused."""
        return bool(self.rules) or self.min_gbytes_per_s > 0

    def may_take(self, path: str, backend: str, transport: str | None = None) -> bool:
        """Whether a way may be taken; None: its transport is not looked at here."""
        if transport is not None:
            refused = any(rule.fits(path, backend, transport) for rule in self.rules if rule.refuses)
            allowed = [rule.fits(path, backend, transport) for rule in self.rules if not rule.refuses]
        else:
            refusing = (rule for rule in self.rules if rule.refuses and rule.transport is None)
            refused = any(rule.fits_way(path, backend) for rule in refusing)
            allowed = [rule.fits_way(path, backend) for rule in self.rules if not rule.refuses]
        return not refused and (not allowed or any(allowed))


ANY_PATH = PathFloor()
"""Demands nothing."""


@lru_cache(maxsize=_FLOORS_KEPT_MAX)
def allowed_paths(require_path: tuple[str, ...]) -> PathFloor:
    """What is demanded of one read; raises like :func:`path_floor`."""
    return path_floor(require_path, 0.0, field="require_path")


def path_floor(require_path: Sequence[str], min_gbytes_per_s: float, *, field: str = _FIELD) -> PathFloor:
    """What is demanded, understood.

    Raises:
        ConfigInvalid: names the rule that cannot be understood, or the rate.
    """
    if len(require_path) > RULES_MAX:
        raise ConfigInvalid.of_field(field, f"{len(require_path)} rules", f"at most {RULES_MAX} are taken")
    if not 0 <= min_gbytes_per_s <= GBYTES_PER_S_MAX:
        why = f"must be 0 to {GBYTES_PER_S_MAX:g}"
        raise ConfigInvalid.of_field("transfers.min_gbytes_per_s", min_gbytes_per_s, why)
    rules = tuple(_rule(f"{field}[{index}]", text) for index, text in enumerate(require_path))
    return PathFloor(tuple(require_path), rules, min_gbytes_per_s)


def floor_mismatches(floor: PathFloor, ways: Iterable[WayFacts]) -> tuple[Mismatch, ...]:
    """Why a pair is refused whose pulls may take these ways; empty if it is not.

    Ways that no rule allows are never taken, whatever their transport; each other one must have an allowed transport
    and the rate. ``ways`` has one at least: what was not attested cannot be judged.
    """
    ways = list(ways)
    takeable = [way for way in ways if floor.may_take(way.path, way.backend)]
    if not takeable:
        return (_mismatch("require_path", " or ".join(way.name for way in ways), _demanded(floor)),)
    found = []
    for way in takeable:
        if not floor.may_take(way.path, way.backend, way.transport):
            found.append(_mismatch("require_path", way.name, _demanded(floor)))
        elif way.gbytes_per_s < floor.min_gbytes_per_s:
            attested = f"{way.gbytes_per_s:.3g} GB/s on {way.name}"
            found.append(_mismatch("min_gbytes_per_s", attested, f"{floor.min_gbytes_per_s:g} GB/s"))
    return tuple(found)


def possible_way_mismatches(
    floor: PathFloor, method: tuple[str, str], *, can_map: bool, packs: bool
) -> tuple[Mismatch, ...]:
    """Why a pair is refused before any byte has moved: none of the ways that are possible may be taken.

    ``method``: path and backend of the transport that both sides have; ``can_map``: both are on one host and map;
    ``packs``: whether the source may pack, which nobody knows before the first contact.
    """
    ways = [method, *([("local", "memory"), ("local", "cuda")] if can_map else [])]
    if packs:
        ways += [("packed", "stream"), ("packed", method[1])]
    if any(floor.may_take(*way) for way in ways):
        return ()
    there = f"{method[0]}/{method[1]}" if can_map else f"{method[0]}/{method[1]}, and no memory in common"
    return (_mismatch("require_path", there, _demanded(floor)),)


def _demanded(floor: PathFloor) -> str:
    return ", ".join(floor.require_path)


def _mismatch(field: str, source: str, destination: str) -> Mismatch:
    return Mismatch(field, source, destination, Reason.PATH_REFUSED)


def _rule(field: str, text: str) -> PathRule:
    match = _RULE.fullmatch(text)
    if match is None or (match[3] is not None and match[3] not in PATHS):
        why = f"must be a path ({', '.join(PATHS)}, or *), then :TRANSPORT if wanted; ! in front refuses"
        raise ConfigInvalid.of_field(field, text, why)
    if match[0] in ("*", "!*"):
        raise ConfigInvalid.of_field(field, text, "says nothing: every way fits")
    return PathRule(bool(match[1]), match[3], match[4], match[5])

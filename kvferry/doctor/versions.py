"""Which versions are installed, against what kvferry declares and what it was tested with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from kvferry.doctor.findings import Finding, Value, broken, none, ok, skipped

CHECK = "versions"
TESTED: Mapping[str, str] = {
    "grpcio": "1.85.1",
    "nixl": "1.5.0",
    "numpy": "2.4.6",
    "protobuf": "6.33.6",
    "torch": "2.13.0",
    "cuda-bindings": "13.5.0",
    "cuda-core": "1.2.2",
}
"""The pins of ``constraints.txt``, which is not installed with the package."""
OPTIONAL = ("cuda-bindings", "cuda-core")
_RANGE = re.compile(r"([\w-]+)(?:\[[\w,]*\])?([<>=!~,.\w ]*)")
_BOUND = re.compile(r"(>=|<|==)\s*([\d.]+)")


@dataclass(frozen=True, slots=True)
class Package:
    """One distribution."""

    name: str
    installed: str | None
    declared: str
    """The range that kvferry declares, such as ``>=1.5,<1.6``; empty for any."""
    tested: str


async def look() -> Sequence[Finding]:
    """All of them."""
    own = _installed("kvferry")
    if own is None:
        # From a source tree that is on the path and not installed.
        return [skipped(f"{CHECK}.kvferry", "kvferry is not installed, so what it needs cannot be compared")]
    ranges = declared_ranges(metadata.requires("kvferry") or [])
    packages = [Package(name, _installed(name), ranges.get(name, ""), tested) for name, tested in TESTED.items()]
    return [ok(f"{CHECK}.kvferry", own, installed=own), *map(judge, packages)]


def declared_ranges(requirements: Sequence[str]) -> dict[str, str]:
    """The range of each requirement as package metadata writes it, by name. Extras count where nothing else is said."""
    ranges: dict[str, str] = {}
    for requirement in requirements:
        stated, _, _ = requirement.partition(";")
        if match := _RANGE.match(stated):
            ranges.setdefault(match[1], match[2].strip())
    return ranges


def judge(package: Package) -> Finding:
    """What a version means."""
    check = f"{CHECK}.{package.name}"
    values: dict[str, Value] = {"installed": package.installed, "declared": package.declared, "tested": package.tested}
    pin = f"pip install '{package.name}=={package.tested}'"
    if package.installed is None:
        if package.name in OPTIONAL:
            return none(check, "not installed; needed for pools on a GPU", **values)
        return broken(check, "not installed", costs="kvferry does not start without it", do=pin, **values)
    if not within(package.installed, package.declared):
        return broken(
            check,
            f"{package.installed} is outside {package.declared}",
            costs="kvferry is not made for it: calls may be refused, or mean something else",
            do=pin,
            **values,
        )
    # A local part such as +cpu names a build, not a version.
    same = package.installed.partition("+")[0] == package.tested
    text = package.installed if same else f"{package.installed}; the tests run with {package.tested}"
    return ok(check, text, **values)


def within(version: str, declared: str) -> bool:
    """Whether a version lies in a range of ``>=``, ``<`` and ``==``."""
    for operator, bound in _BOUND.findall(declared):
        left, right = _numbers(version), _numbers(bound)
        length = max(len(left), len(right))
        left, right = (numbers + (0,) * (length - len(numbers)) for numbers in (left, right))
        if not {">=": left >= right, "<": left < right, "==": left == right}[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"[\d.]*", version.partition("+")[0])
    return tuple(int(part) for part in (release[0] if release else "").split(".") if part)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

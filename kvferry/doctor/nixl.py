"""NIXL's plugins: which load, and what the loader says about those that do not."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvferry.core.backends import Transport
from kvferry.doctor.child import Answer, ask
from kvferry.doctor.findings import Finding, Value, broken, none, ok

CHECK = "nixl.plugins"
_REFUSAL = re.compile(r"Failed to load plugin from \S*libplugin_(\w+)\.so: (.+)")
_UNKNOWN = "NIXL does not say why"


@dataclass(frozen=True, slots=True)
class Plugins:
    """What the wheel has and what became of it."""

    wheel: str
    loaded: tuple[str, ...]
    refused: Mapping[str, str]
    """The loader's words by plugin."""


async def look(transport: Transport) -> Sequence[Finding]:
    """Load them all in a process of its own; ``transport`` is what data planes are to use."""
    answer = await ask("kvferry.doctor.nixl_child", environment={"NIXL_LOG_LEVEL": "INFO"})
    if answer.end or answer.values["error"]:
        return [_no_nixl(answer.end or str(answer.values["error"]), is_needed=transport is not Transport.UCX)]
    return [judge(read(answer), transport)]


def read(answer: Answer) -> Plugins:
    """What a child's answer and NIXL's lines say together."""
    said = dict(_REFUSAL.findall(answer.log))
    loaded = tuple(answer.values["loaded"])
    refused = {name: said.get(name, _UNKNOWN) for name in answer.values["plugins"] if name not in loaded}
    return Plugins(answer.values["wheel"], loaded, refused)


def judge(plugins: Plugins, transport: Transport) -> Finding:
    """What loaded plugins and refusals mean where data planes are to use ``transport``.

    What LIBFABRIC's plugin lacks by itself the data plane may provide: whether it can is found out by opening it. The
    others but UCX are for storage, which kvferry does not use.
    """
    values: dict[str, Value] = {
        "wheel": plugins.wheel,
        "loaded": list(plugins.loaded),
        "refused": dict(plugins.refused),
    }
    text = f"{plugins.wheel}: {', '.join(plugins.loaded) or 'none'} load"
    text += "".join(f"; {name} does not by itself: {_shortened(why)}" for name, why in plugins.refused.items())
    if transport is not Transport.NIXL_UCX or "UCX" in plugins.loaded:
        return ok(CHECK, text, **values)
    why = plugins.refused.get("UCX", "the wheel has none")
    return broken(
        CHECK,
        f"{plugins.wheel}: the plugin UCX does not load: {why}",
        costs="no data plane starts with backend NIXL",
        do=remedy(why),
        **values,
    )


def remedy(why: str) -> str:
    """The one thing to do about a loader's words."""
    missing, _, rest = why.partition(": cannot open shared object file")
    if rest:
        return f"install the library {missing.rpartition(' ')[2]}, or add its folder to LD_LIBRARY_PATH"
    if "version `" in why:
        return "take the releases that are pinned: one library wants another release of the other"
    return "do what the message says"


def _shortened(why: str) -> str:
    missing, _, rest = why.partition(": cannot open shared object file")
    return f"no {missing}" if rest else why


def _no_nixl(error: str, *, is_needed: bool) -> Finding:
    if not is_needed:
        return none(CHECK, f"{error}; backend UCX does without NIXL")
    return broken(
        CHECK,
        error,
        costs="no data plane starts with backend NIXL",
        do="install the wheel of the pinned version: pip install nixl-cu13 (nixl-cu12 with CUDA 12)",
    )

"""NIXL's plugins: which load, and what the loader says about those that do not."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvferry.core.backends import Transport
from kvferry.doctor.child import Answer, ask
from kvferry.doctor.findings import Finding, Value, broken, none, ok

CHECK = "nixl"
USED = {"UCX": Transport.NIXL_UCX, "LIBFABRIC": Transport.NIXL_LIBFABRIC}
"""The plugins that move KV between data planes, and for what they are needed. The others are for storage."""
_REFUSAL = re.compile(r"Failed to load plugin from \S*libplugin_(\w+)\.so: (.+)")
_UNKNOWN = "NIXL does not say why"


@dataclass(frozen=True, slots=True)
class Plugins:
    """What the wheel has and what became of it."""

    wheel: str
    loaded: tuple[str, ...]
    refused: Mapping[str, str]
    """The loader's words by plugin."""
    agent_error: str
    """Why no agent can be made as a data plane makes it; empty if it can."""


async def look(transport: Transport) -> Sequence[Finding]:
    """Load them all in a process of its own; ``transport`` is what data planes are to use."""
    answer = await ask("kvferry.doctor.nixl_child", environment={"NIXL_LOG_LEVEL": "INFO"})
    if answer.end or answer.values["error"]:
        return [_no_nixl(answer.end or str(answer.values["error"]))]
    return judge(read(answer), transport)


def read(answer: Answer) -> Plugins:
    """What a child's answer and NIXL's lines say together."""
    said = dict(_REFUSAL.findall(answer.log))
    loaded = tuple(answer.values["loaded"])
    return Plugins(
        wheel=answer.values["wheel"],
        loaded=loaded,
        refused={name: said.get(name, _UNKNOWN) for name in answer.values["plugins"] if name not in loaded},
        agent_error=answer.values["agent_error"],
    )


def judge(plugins: Plugins, transport: Transport) -> list[Finding]:
    """What loaded plugins and refusals mean where data planes are to use ``transport``."""
    findings = [_plugin(plugins, name, is_needed=needed_by is transport) for name, needed_by in USED.items()]
    findings.append(_agent(plugins))
    others = [name for name in plugins.loaded if name not in USED]
    refused = {name: why for name, why in plugins.refused.items() if name not in USED}
    text = f"storage, which kvferry does not use: {', '.join(others) or 'none'} load"
    text += "".join(f"; {name} does not: {_shortened(why)}" for name, why in refused.items())
    return [*findings, none(f"{CHECK}.other_plugins", text, loaded=list(others), refused=dict(refused))]


def _shortened(why: str) -> str:
    missing, _, rest = why.partition(": cannot open shared object file")
    return f"no {missing}" if rest else why


def _no_nixl(error: str) -> Finding:
    return broken(
        f"{CHECK}.wheel",
        error,
        costs="no data plane starts with backend NIXL",
        do="install the wheel of the pinned version: pip install nixl-cu13 (nixl-cu12 with CUDA 12)",
    )


def _plugin(plugins: Plugins, name: str, *, is_needed: bool) -> Finding:
    check = f"{CHECK}.plugin.{name.lower()}"
    values: dict[str, Value] = {"wheel": plugins.wheel, "needed": is_needed}
    if name in plugins.loaded:
        return ok(check, f"{name} of {plugins.wheel} loads", loaded=True, **values)
    why = plugins.refused.get(name, f"{plugins.wheel} has no such plugin")
    values["error"] = why
    if not is_needed:
        text = f"{name} of {plugins.wheel} does not load: {why}. Nothing needs it: --nixl-backend {name} would"
        return none(check, text, loaded=False, **values)
    return broken(
        check,
        f"{name} of {plugins.wheel} does not load: {why}",
        costs=f"no data plane starts with --nixl-backend {name}",
        do=_remedy(name, why),
        loaded=False,
        **values,
    )


def _remedy(plugin: str, why: str) -> str:
    missing, _, rest = why.partition(": cannot open shared object file")
    if rest:
        return f"install the library {missing}, or add its folder to LD_LIBRARY_PATH"
    if "version `" in why:
        return f"take the NIXL release that is pinned: this one's {plugin} wants another release of that library"
    return f"see the loader's message; another backend is set with --nixl-backend or --backend instead of {plugin}"


def _agent(plugins: Plugins) -> Finding:
    check = f"{CHECK}.agent"
    if not plugins.agent_error:
        return ok(check, "an agent can be made as a data plane makes it")
    return broken(
        check,
        f"no agent can be made: {plugins.agent_error}",
        costs="no data plane starts with backend NIXL",
        do="see ucx.transports; UCX_TLS must not exclude tcp on a machine without RDMA",
    )

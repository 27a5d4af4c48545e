"""What an engine's TensorRT-LLM configuration means here. Pure.

TensorRT-LLM has a backend in its file and, for ``DEFAULT``, variables that choose one. Whether they do differs between
its releases: some were documented not to read them, others take the first that is 1, in differing orders. An explicit
backend is followed. ``DEFAULT`` is followed where every release comes to the same, and refused where they differ.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from kvferry.config.nearest import nearest
from kvferry.config.trtllm_engine import BUFFER_KEY, SECTION, TIMEOUT_KEY, EngineBackend, EngineConfig
from kvferry.config.values import Layer, Origin, Source, Value
from kvferry.core.backends import Backend, NixlBackend
from kvferry.core.errors import ConfigInvalid

NIXL_VARIABLE = "TRTLLM_NIXL_KVCACHE_BACKEND"
SELECTORS = {
    "TRTLLM_USE_NIXL_KVCACHE": EngineBackend.NIXL,
    "TRTLLM_USE_UCX_KVCACHE": EngineBackend.UCX,
    "TRTLLM_USE_MOONCAKE_KVCACHE": EngineBackend.MOONCAKE,
    "TRTLLM_USE_MPI_KVCACHE": EngineBackend.MPI,
}
"""The variables that ``DEFAULT`` may look at. Only the value 1 counts."""
_SELECTOR_PREFIX = "TRTLLM_USE_"
_HERE = {EngineBackend.NIXL, EngineBackend.UCX}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Releases that read ``DEFAULT`` alike: the first of these backends whose variable is 1, else NIXL."""

    who: str
    order: tuple[EngineBackend, ...]

    def reads(self, wanted: Collection[EngineBackend]) -> EngineBackend:
        return next((backend for backend in self.order if backend in wanted), EngineBackend.NIXL)


_NIXL, _UCX, _MOONCAKE, _MPI = SELECTORS.values()
_READERS = (
    _Reader("releases documented not to read the variables", ()),
    _Reader("releases that take the first that is 1", (_NIXL, _UCX, _MOONCAKE, _MPI)),
    _Reader("the C++ executor, which looks for UCX first", (_UCX, _NIXL, _MOONCAKE, _MPI)),
    _Reader("older releases, which look for UCX and MPI only", (_UCX, _MPI)),
)


def data_plane_layer(engine: EngineConfig | None, given: Mapping[str, Value], environment: Mapping[str, str]) -> Layer:
    """``backend`` and ``nixl_backend`` of a data plane as the engine has them, unless ``given`` says it.

    Raises:
        ConfigInvalid: the transfer is off, the backend is none of kvferry's, or it depends on the release.
    """
    if engine is None:
        return Layer(notes=tuple(_unread(environment)))
    notes = [*_misspelt(environment), *_engines_own(engine)]
    values: dict[str, Value] = {}
    backend = given.get("backend")
    if backend is None:
        backend = Value(_followed(engine, environment).value, engine.origin("backend"))
        values["backend"] = backend
        notes += _not_followed(engine, environment)
    else:
        was = engine.backend or "not set"
        notes.append(f"{SECTION}.backend of {engine.path} ({was}) has no effect: {backend.origin} goes before it")
    if environment.get(NIXL_VARIABLE):
        uses_nixl = backend.raw != Backend.UCX
        if uses_nixl and "nixl_backend" not in given:
            values["nixl_backend"] = _nixl_backend(environment[NIXL_VARIABLE])
        else:
            why = f"{given['nixl_backend'].origin} goes before it" if uses_nixl else "the backend is UCX without NIXL"
            notes.append(f"{NIXL_VARIABLE}={environment[NIXL_VARIABLE]} has no effect: {why}")
    if engine.kv_transfer_timeout_ms is not None or engine.is_unbounded:
        notes.append(f"{SECTION}.{TIMEOUT_KEY} is for control, which takes the same file")
    return Layer(values, tuple(notes))


def control_layer(engine: EngineConfig | None, given: Mapping[str, Value]) -> Layer:
    """The time that a control gives pulls as the engine has it, unless ``given`` says it."""
    if engine is None:
        return Layer()
    if engine.is_unbounded:
        why = "there is no pull without a deadline"
        return Layer(notes=(f"{SECTION}.{TIMEOUT_KEY} of {engine.path} is nothing, and has no effect: {why}",))
    if engine.kv_transfer_timeout_ms is None:
        return Layer()
    own = given.get("transfers.timeout_s")
    if own is not None:
        why = f"{own.origin} goes before it"
        return Layer(notes=(f"{SECTION}.{TIMEOUT_KEY} of {engine.path} has no effect: {why}",))
    seconds = engine.kv_transfer_timeout_ms / 1e3
    return Layer({"transfers.timeout_s": Value(seconds, engine.origin(TIMEOUT_KEY))})


def _followed(engine: EngineConfig, environment: Mapping[str, str]) -> Backend:
    match engine.backend:
        case None:
            why = (
                "which switches the transfer of KV off, and a data plane is for nothing else. "
                f"Set {SECTION}.backend in {engine.path}, or --backend beside it"
            )
            raise ConfigInvalid.of_field(f"{SECTION}.backend", "(not set)", why)
        case EngineBackend.MPI | EngineBackend.MOONCAKE:
            why = (
                f"kvferry does not have it. Use NIXL, which replaces it between any two hosts, or UCX: "
                f"`backend: NIXL` under {SECTION} in {engine.path}, or --backend NIXL"
            )
            raise ConfigInvalid.of_field(f"{SECTION}.backend", engine.backend.value, why)
        case EngineBackend.DEFAULT:
            _check_unambiguous(engine, environment)
    return Backend(engine.backend.value)


def _check_unambiguous(engine: EngineConfig, environment: Mapping[str, str]) -> None:
    """See to it that every release reads ``DEFAULT`` as NIXL."""
    wanted = [backend for name, backend in SELECTORS.items() if environment.get(name) == "1"]
    readings: dict[EngineBackend, str] = {}
    for reader in _READERS:
        readings.setdefault(reader.reads(wanted), reader.who)
    if readings.keys() == {EngineBackend.NIXL}:
        return
    named = ", ".join(f"{name}=1" for name, backend in SELECTORS.items() if backend in wanted)
    both = "; ".join(f"{backend} by {who}" for backend, who in readings.items())
    lines = " or ".join(f"`backend: {backend}`" for backend in readings if backend in _HERE)
    without = [str(backend) for backend in readings if backend not in _HERE]
    but = f" (kvferry has no {' and no '.join(without)})" if without else ""
    why = f"beside {named} it is read as {both}. One line under {SECTION} in {engine.path} settles it: {lines}{but}"
    raise ConfigInvalid.of_field(f"{SECTION}.backend", "DEFAULT", why)


def _nixl_backend(text: str) -> Value:
    if text not in tuple(NixlBackend):
        why = f"must be {' or '.join(NixlBackend)}; TensorRT-LLM would take UCX without a word"
        raise ConfigInvalid.of_field(NIXL_VARIABLE, text, why)
    return Value(text, Origin(Source.ENVIRONMENT, NIXL_VARIABLE))


def _engines_own(engine: EngineConfig) -> Iterator[str]:
    if engine.max_tokens_in_buffer is not None:
        yield (
            f"{SECTION}.{BUFFER_KEY}={engine.max_tokens_in_buffer} has no effect: pools are read where they lie, and "
            "what is packed goes through staging of a fixed size"
        )
    if engine.others:
        yield f"{SECTION} in {engine.path}: {', '.join(engine.others)}: the engine's own, without effect here"


def _not_followed(engine: EngineConfig, environment: Mapping[str, str]) -> Iterator[str]:
    for name, wanted in SELECTORS.items():
        text = environment.get(name, "")
        if text == "1" and engine.backend is not EngineBackend.DEFAULT:
            yield f"{name}=1 has no effect: {SECTION}.backend in {engine.path} is {engine.backend}"
        elif text == "1" and wanted is not EngineBackend.NIXL:
            yield f"{name}=1 has no effect: beside the others every release takes NIXL"
        elif text not in ("", "0", "1"):
            yield f"{name}={text} has no effect: only 1 counts"


def _misspelt(environment: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(environment):
        if name.startswith(_SELECTOR_PREFIX) and name.endswith("CACHE") and name not in SELECTORS:
            yield f"{name} is no variable of TensorRT-LLM; the nearest is {nearest(name, SELECTORS)}"


def _unread(environment: Mapping[str, str]) -> Iterator[str]:
    for name in (*SELECTORS, NIXL_VARIABLE):
        if environment.get(name):
            yield f"{name}={environment[name]} has no effect: it is read beside --trtllm-config only"

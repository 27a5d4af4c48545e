"""TensorRT-LLM's configuration, read as it is: every backend with every set of variables."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest

from kvferry.config.trtllm import NIXL_VARIABLE, SELECTORS, control_layer, data_plane_layer
from kvferry.config.trtllm_engine import EngineBackend, EngineConfig, engine_config
from kvferry.config.values import Layer, Origin, Source, Value
from kvferry.core.errors import ConfigInvalid

NIXL, UCX, MOONCAKE, MPI = SELECTORS
SETS = [frozenset(name for name, on in zip(SELECTORS, bits, strict=True) if on) for bits in product((0, 1), repeat=4)]
FLAG = Origin(Source.FLAG, "--backend")


def engine(**section: Any) -> EngineConfig:
    """An engine's file with this section."""
    return engine_config("engine.yaml", {"cache_transceiver_config": section, "max_batch_size": 8})


def ones(names: frozenset[str]) -> dict[str, str]:
    """An environment with these set to 1."""
    return dict.fromkeys(names, "1")


def read(config: EngineConfig | None, environment: Mapping[str, str], **own: str) -> Layer:
    """The data plane's layer; ``own`` values are set by flags."""
    return data_plane_layer(config, {name: Value(text, FLAG) for name, text in own.items()}, environment)


def raws(layer: Layer) -> dict[str, object]:
    """The values without their origins."""
    return {name: value.raw for name, value in layer.values.items()}


@pytest.mark.parametrize("names", SETS, ids=lambda names: "+".join(sorted(names)) or "none")
@pytest.mark.parametrize("backend", ["NIXL", "UCX"])
def test_an_explicit_backend_is_followed_whatever_the_variables_say(backend: str, names: frozenset[str]) -> None:
    """And each variable that is 1 is told to have no effect."""
    layer = read(engine(backend=backend), ones(names))
    assert {"backend": backend} == raws(layer)
    assert Origin(Source.FILE, "cache_transceiver_config.backend", "engine.yaml") == layer.values["backend"].origin
    assert sorted(names) == sorted(note.partition("=")[0] for note in layer.notes)


def unambiguous() -> Iterator[frozenset[str]]:
    """What every release reads as NIXL beside DEFAULT."""
    yield from (frozenset(), frozenset({NIXL}), frozenset({MOONCAKE, NIXL}))


@pytest.mark.parametrize("names", SETS, ids=lambda names: "+".join(sorted(names)) or "none")
def test_default_is_followed_only_where_all_releases_agree(names: frozenset[str]) -> None:
    """Otherwise the refusal shows the readings, what is set, and the line that settles it."""
    config, environment = engine(backend="DEFAULT"), ones(names)
    if names in set(unambiguous()):
        assert {"backend": "DEFAULT"} == raws(read(config, environment))
        return
    with pytest.raises(ConfigInvalid) as caught:
        read(config, environment)
    message = caught.value.message
    assert all(f"{name}=1" in message for name in names)
    assert "NIXL by releases documented not to read the variables" in message
    assert "`backend: NIXL`" in message
    assert "under cache_transceiver_config in engine.yaml" in message
    assert ("`backend: UCX`" in message) == (UCX in names)


@pytest.mark.parametrize(
    ("names", "reading"),
    [
        ({UCX}, "UCX by releases that take the first that is 1"),
        ({UCX, NIXL}, "UCX by the C++ executor, which looks for UCX first"),
        ({MPI}, "MPI by releases that take the first that is 1"),
        ({MPI, NIXL}, "MPI by older releases, which look for UCX and MPI only"),
        ({MOONCAKE}, "MOONCAKE by releases that take the first that is 1"),
        ({MOONCAKE, MPI}, "MPI by older releases"),
    ],
)
def test_the_other_reading_names_who_reads_so(names: set[str], reading: str) -> None:
    """The reading that differs stands beside the documented one."""
    with pytest.raises(ConfigInvalid) as caught:
        read(engine(backend="DEFAULT"), ones(frozenset(names)))
    assert reading in caught.value.message


@pytest.mark.parametrize("names", SETS, ids=lambda names: "+".join(sorted(names)) or "none")
@pytest.mark.parametrize("backend", ["MPI", "MOONCAKE"])
def test_backends_that_kvferry_lacks_are_refused_by_name(backend: str, names: frozenset[str]) -> None:
    """With what to use instead."""
    with pytest.raises(ConfigInvalid, match=r"kvferry does not have it.*backend: NIXL") as caught:
        read(engine(backend=backend), ones(names))
    assert backend == caught.value.metadata["value"]


@pytest.mark.parametrize("names", SETS, ids=lambda names: "+".join(sorted(names)) or "none")
@pytest.mark.parametrize("values", [{}, {"cache_transceiver_config": None}, {"cache_transceiver_config": {}}])
def test_what_is_not_set_is_off_and_refused(values: dict[str, Any], names: frozenset[str]) -> None:
    """No section, an empty one and one without a backend switch transfer off, whatever the variables say."""
    with pytest.raises(ConfigInvalid, match="switches the transfer of KV off"):
        read(engine_config("engine.yaml", values), ones(names))


@pytest.mark.parametrize("backend", [None, *EngineBackend])
@pytest.mark.parametrize("names", SETS, ids=lambda names: "+".join(sorted(names)) or "none")
def test_kvferrys_own_backend_settles_everything(backend: str | None, names: frozenset[str]) -> None:
    """With --backend nothing of the engine's is ambiguous or refused; that it has no effect is said."""
    layer = read(engine(backend=backend), ones(names), backend="UCX")
    assert {} == raws(layer)
    assert "has no effect: flag --backend goes before it" in layer.notes[0]


@pytest.mark.parametrize(
    ("backend", "own", "text", "expected", "note"),
    [
        ("NIXL", {}, "LIBFABRIC", "LIBFABRIC", ""),
        ("DEFAULT", {}, "LIBFABRIC", "LIBFABRIC", ""),
        ("NIXL", {}, "UCX", "UCX", ""),
        ("NIXL", {}, "", None, ""),
        ("UCX", {}, "LIBFABRIC", None, "the backend is UCX without NIXL"),
        ("NIXL", {"backend": "UCX"}, "LIBFABRIC", None, "the backend is UCX without NIXL"),
        ("UCX", {"backend": "NIXL"}, "LIBFABRIC", "LIBFABRIC", ""),
        ("NIXL", {"nixl_backend": "UCX"}, "LIBFABRIC", None, "flag --backend goes before it"),
        ("UCX", {}, "nonsense", None, "the backend is UCX without NIXL"),
    ],
)
def test_what_nixl_stands_on(backend: str, own: dict[str, str], text: str, expected: str | None, note: str) -> None:
    """The variable counts where NIXL is used and kvferry's own key is not set."""
    layer = read(engine(backend=backend), {NIXL_VARIABLE: text}, **own)
    assert expected == raws(layer).get("nixl_backend")
    if expected is not None:
        assert Origin(Source.ENVIRONMENT, NIXL_VARIABLE) == layer.values["nixl_backend"].origin
    assert bool(note) == any(NIXL_VARIABLE in each and note in each for each in layer.notes)


@pytest.mark.parametrize("text", ["MOONCAKE", "libfabric", "1"])
def test_an_unknown_backend_of_nixl_is_not_replaced(text: str) -> None:
    """TensorRT-LLM falls back to UCX there; kvferry refuses."""
    with pytest.raises(ConfigInvalid, match="must be UCX or LIBFABRIC"):
        read(engine(backend="NIXL"), {NIXL_VARIABLE: text})


def test_only_one_counts() -> None:
    """Other values of a selector choose nothing, and that is said; 0 and nothing need no word."""
    environment = {UCX: "true", MPI: "0", MOONCAKE: ""}
    layer = read(engine(backend="DEFAULT"), environment)
    assert {"backend": "DEFAULT"} == raws(layer)
    assert (f"{UCX}=true has no effect: only 1 counts",) == layer.notes


def test_a_misspelt_selector_is_pointed_out() -> None:
    """A name that was documented wrongly elsewhere chooses nothing."""
    layer = read(engine(backend="DEFAULT"), {"TRTLLM_USE_UCX_KV_CACHE": "1", "TRTLLM_USE_CPP": "1"})
    assert (f"TRTLLM_USE_UCX_KV_CACHE is no variable of TensorRT-LLM; the nearest is {UCX}",) == layer.notes


def test_without_the_file_the_variables_are_not_read() -> None:
    """They are told to have no effect."""
    layer = read(None, {UCX: "1", NIXL_VARIABLE: "LIBFABRIC"})
    assert {} == raws(layer)
    assert [UCX, NIXL_VARIABLE] == [note.partition("=")[0] for note in layer.notes]


def test_what_has_no_counterpart_is_said() -> None:
    """The buffer, the time-out (of a data plane) and the engine's own keys are named, not dropped without a word."""
    config = engine(backend="NIXL", max_tokens_in_buffer=2048, kv_transfer_timeout_ms=5, transceiver_runtime="PYTHON")
    notes = "\n".join(read(config, {}).notes)
    for text in ("max_tokens_in_buffer=2048 has no effect", "kv_transfer_timeout_ms is for control", "_runtime: the"):
        assert text in notes


@pytest.mark.parametrize(
    ("section", "own", "expected", "note"),
    [
        ({"kv_transfer_timeout_ms": 1500}, {}, 1.5, ""),
        ({"kv_transfer_timeout_ms": 1500, "backend": "MPI"}, {}, 1.5, ""),
        ({"kv_transfer_timeout_ms": 1500}, {"transfers.timeout_s": "7"}, None, "goes before it"),
        ({"kv_transfer_timeout_ms": None}, {}, None, "no pull without a deadline"),
        ({}, {}, None, ""),
    ],
)
def test_the_time_out_is_controls(section: dict[str, Any], own: dict[str, str], expected: float, note: str) -> None:
    """It becomes the time of pulls that say none."""
    layer = control_layer(engine(**section), {name: Value(text, FLAG) for name, text in own.items()})
    assert expected == raws(layer).get("transfers.timeout_s")
    assert bool(note) == bool(layer.notes)
    assert note in "".join(layer.notes)


def test_control_without_an_engines_file_has_no_such_layer() -> None:
    """Nothing is added."""
    assert Layer() == control_layer(None, {})


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("NIXL", "cache_transceiver_config"),
        ({"backend": "nixl"}, "cache_transceiver_config.backend"),
        ({"backend": 1}, "cache_transceiver_config.backend"),
        ({"backend": ["NIXL"]}, "cache_transceiver_config.backend"),
        ({"max_tokens_in_buffer": 0}, "cache_transceiver_config.max_tokens_in_buffer"),
        ({"kv_transfer_timeout_ms": "5"}, "cache_transceiver_config.kv_transfer_timeout_ms"),
        ({"kv_transfer_timeout_ms": True}, "cache_transceiver_config.kv_transfer_timeout_ms"),
    ],
)
def test_a_wrong_value_is_named(section: object, field: str) -> None:
    """With the file that it stands in."""
    with pytest.raises(ConfigInvalid, match=r"engine\.yaml") as caught:
        engine_config("engine.yaml", {"cache_transceiver_config": section})
    assert field == caught.value.metadata["field"]

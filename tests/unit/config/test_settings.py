"""Which value holds, and where it came from."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from kvferry.config.flags import Program
from kvferry.config.keys import Key
from kvferry.config.settings import Settings, read_settings
from kvferry.config.values import DEFAULT, Layer, Origin, Source, Value
from kvferry.core.errors import ConfigInvalid

PROGRAM = Program(
    "kvferry test",
    "A program.",
    (
        Key("backend", "NAME", "what", "DEFAULT"),
        Key("etcd.endpoints", "ONE,TWO", "where", required=True, is_list=True),
        Key("max_reads", "N", "how many", "4096"),
        Key("pack_listen", "HOST:PORT", "where"),
    ),
)
FLAG = ["--backend", "of-flag"]
ENVIRONMENT = {"KVFERRY_BACKEND": "of-environment"}
BELOW = Layer({"backend": Value("of-engine", Origin(Source.FILE, "cache_transceiver_config.backend", "e.yaml"))})


def read(
    arguments: list[str], environment: Mapping[str, str], file: Path | None = None, below: Layer | None = None
) -> Settings:
    """Settings of the program."""
    named = [] if file is None else ["--config", str(file)]
    return read_settings(PROGRAM, [*named, *arguments], environment, lambda _, __: below or Layer())


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (("flag", "environment", "file", "engine"), "of-flag"),
        (("environment", "file", "engine"), "of-environment"),
        (("file", "engine"), "of-file"),
        (("engine",), "of-engine"),
        ((), "DEFAULT"),
    ],
)
def test_flag_before_environment_before_file_before_engine_before_default(
    tmp_path: Path, sources: tuple[str, ...], expected: str
) -> None:
    """The first of them that says something holds, and is named as the origin."""
    file = tmp_path / "a.yaml"
    file.write_text("backend: of-file" if "file" in sources else "")
    settings = read(
        FLAG if "flag" in sources else [],
        ENVIRONMENT if "environment" in sources else {},
        file,
        BELOW if "engine" in sources else None,
    )
    origins = {
        "of-flag": "flag --backend",
        "of-environment": "environment KVFERRY_BACKEND",
        "of-file": f"file {file}: backend",
        "of-engine": "file e.yaml: cache_transceiver_config.backend",
        "DEFAULT": "default",
    }
    assert (expected, origins[expected]) == (settings.text("backend"), str(settings.origin("backend")))


def test_variables_and_flags_of_lists_have_commas() -> None:
    """Several values stand in one variable or flag with commas between them."""
    settings = read([], {"KVFERRY_ETCD_ENDPOINTS": "a:1, b:2"})
    assert ["a:1", "b:2"] == settings.values["etcd.endpoints"].raw
    settings = read(["--etcd-endpoints=c:3"], {"KVFERRY_ETCD_ENDPOINTS": "a:1,b:2"})
    assert ["c:3"] == settings.values["etcd.endpoints"].raw


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--bakend", "UCX"], {}, "--bakend: unknown flag; the nearest known flag is '--backend'"),
        (["--max-read=5"], {}, "--max-read: unknown flag; the nearest known flag is '--max-reads'"),
        (["--zzz"], {}, "--zzz: unknown flag"),
        (["UCX"], {}, "UCX: unexpected argument"),
        ([], {"KVFERRY_MAX_REDS": "5"}, "KVFERRY_MAX_REDS: unknown variable; the nearest known variable is"),
        ([], {"KVFERRY_ZZZ": "hunter2"}, "KVFERRY_ZZZ: unknown variable"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(
    arguments: list[str], environment: dict[str, str], message: str
) -> None:
    """Flags (also abbreviated ones) and variables that mean nothing are refused, without their values."""
    with pytest.raises(ConfigInvalid) as caught:
        read(arguments, environment)
    assert caught.value.message.startswith(message)
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        "KVFERRY_ENDPOINT",
        "KVFERRY_HEALTH",
        "KVFERRY_IMAGE",
        "KVFERRY_UNSAFE_FOR_TESTS_SKIP_ROLLOVER",
        "KVFERRY_POOL_BYTES",
        "KVFERRY_LIMITS_TTL_S",
        "KVFERRY_SERVICE_HOST",
        "KVFERRY_PORT",
        "KVFERRY_CONTROL_SERVICE_PORT_GRPC",
        "KVFERRY_PORT_7701_TCP_ADDR",
        "UCX_TLS",
    ],
)
def test_variables_of_others_are_left_alone(name: str) -> None:
    """Those of the command line, of other processes and of Kubernetes' services are no mistakes."""
    assert {} == {name: value for name, value in read([], {name: "x"}).values.items() if value.origin != DEFAULT}


def test_an_empty_variable_is_not_set() -> None:
    """A compose file's ``${BACKEND:-}`` leaves the default."""
    assert "default" == str(read([], {"KVFERRY_BACKEND": ""}).origin("backend"))


def test_a_required_key_is_asked_for_by_all_its_names() -> None:
    """The refusal names flag, variable and key."""
    with pytest.raises(ConfigInvalid, match=r"--etcd-endpoints, KVFERRY_ETCD_ENDPOINTS, or etcd\.endpoints"):
        read([], {}).check_required()
    read([], {"KVFERRY_ETCD_ENDPOINTS": "a:1"}).check_required()


def test_a_refusal_says_where_the_value_was_set() -> None:
    """An error about a key, or a part of its value, gets the origin; one about a default does not."""
    settings = read([], {"KVFERRY_ETCD_ENDPOINTS": "a:1"})
    blamed = settings.blame(ConfigInvalid.of_field("etcd.endpoints[0]", "a:1", "no"))
    assert "etcd.endpoints[0]=a:1: no (from environment KVFERRY_ETCD_ENDPOINTS)" == blamed.message
    assert "environment KVFERRY_ETCD_ENDPOINTS" == blamed.metadata["origin"]
    assert "max_reads=1: no" == settings.blame(ConfigInvalid.of_field("max_reads", 1, "no")).message


@pytest.mark.parametrize("raw", ["true", "[1]", "{a: 1}"])
def test_text_is_text_or_a_number(tmp_path: Path, raw: str) -> None:
    """A file's truth value, list or mapping is not taken for text."""
    file = tmp_path / "a.yaml"
    file.write_text(f"max_reads: {raw}")
    with pytest.raises(ConfigInvalid, match="must be text or a number"):
        read([], {}, file).text("max_reads")


def test_passwords_in_addresses_are_neither_shown_nor_logged() -> None:
    """A password that somebody put into a URL is hidden wherever values are written."""
    settings = read(["--etcd-endpoints", "http://root:hunter2@etcd:2379,b:1", "--pack-listen", "a@b:1"], {})
    shown = {key.name: text for key, text, _ in settings.shown()}
    assert ("http://...@etcd:2379, b:1", "a@b:1") == (shown["etcd.endpoints"], shown["pack_listen"])
    assert "hunter2" not in str(settings.logged())

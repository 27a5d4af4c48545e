"""Files are read by their suffix, and nothing in them is taken for something else."""

from pathlib import Path

import pytest

from kvferry.config.files import FILE_BYTES_MAX, read_values
from kvferry.config.keys import Key
from kvferry.config.values import Origin, Source, Value
from kvferry.core.errors import ConfigInvalid

KEYS = [Key(name, "X", "") for name in ("same_host", "listen", "count", "share", "worker.name", "drain.remote", "none")]

TOML = 'same_host = "off"\nlisten = "10:30"\ncount = 12\nshare = 0.5\n[worker]\nname = "w"\n[drain]\nremote = false\n'
YAML = "same_host: off\nlisten: 10:30\ncount: 12\nshare: 0.5\nworker: {name: w}\ndrain:\n  remote: false\nnone:\n"
READ = {"same_host": "off", "listen": "10:30", "count": 12, "share": 0.5, "worker.name": "w", "drain.remote": False}


def written(folder: Path, name: str, text: str) -> Path:
    """A file."""
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("a.YML", YAML)])
def test_toml_and_yaml_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    """Words of YAML stay words (``off``, ``10:30``), a key without a value is not set, each value knows its file."""
    path = written(tmp_path, name, text)
    assert {key: Value(raw, Origin(Source.FILE, key, str(path))) for key, raw in READ.items()} == read_values(
        path, KEYS
    )


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", "{}", "its name must end in"),
        ("a.toml", "a = = b", "is not TOML"),
        ("a.yaml", "a: [", "is not YAML"),
        ("a.yaml", "[" * 5000, "is not YAML"),
        ("a.yaml", "- a\n- b", "must hold keys and values"),
        ("a.yaml", "count: 1\ncount: 2", "'count' stands twice"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "is not YAML"),
        ("a.yaml", "worker: 7", "worker=7: must be a section"),
        ("a.yaml", "worker: {nmae: secret}", "worker.nmae: unknown key; the nearest known key is 'worker.name'"),
        ("a.toml", "[drian]\nremote = true", "drian: unknown key; the nearest known key is 'drain'"),
        ("a.yaml", "samehost: off", "samehost: unknown key; the nearest known key is 'same_host'"),
        ("a.yaml", "zzz: 1", "zzz: unknown key"),
        ("a.yaml", "1: 1", "1: unknown key"),
        ("a.yaml", "a: " + "b" * FILE_BYTES_MAX, "is larger than"),
        ("a.yaml", None, "cannot be read"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, name: str, text: str | None, expected: str) -> None:
    """The refusal says what is wrong, names the nearest known key, and does not show the value of an unknown one."""
    path = tmp_path / name if text is None else written(tmp_path, name, text)
    with pytest.raises(ConfigInvalid) as caught:
        read_values(path, KEYS)
    assert expected in caught.value.message
    assert "secret" not in caught.value.message


def test_a_merged_key_may_be_set_anew(tmp_path: Path) -> None:
    """What a section takes over from another one and sets itself does not stand twice."""
    path = written(tmp_path, "a.yaml", "drain: &d {remote: true}\nworker: {name: a}\n")
    assert {"drain.remote": True, "worker.name": "a"} == {k: v.raw for k, v in read_values(path, KEYS).items()}
    path = written(tmp_path, "b.yaml", "worker: &w {name: a}\n<<: {count: 1}\ncount: 2\n")
    assert {"count": 2, "worker.name": "a"} == {k: v.raw for k, v in read_values(path, KEYS).items()}

"""Compiled kernels are kept, and what could be somebody else's is not run."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from kvferry.device.kernel_cache import cache_key, cached, default_directory

KEY = cache_key("source", "sm_90", {"A": 1}, "13.0")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory of the cache that does not exist yet."""
    return tmp_path / "cache" / "kernels"


def never() -> bytes:
    """Stands for the compiler where it must not be needed."""
    raise AssertionError("compiled although it is kept")


@pytest.mark.parametrize(
    "other",
    [
        cache_key("source ", "sm_90", {"A": 1}, "13.0"),
        cache_key("source", "sm_80", {"A": 1}, "13.0"),
        cache_key("source", "sm_90", {"A": 2}, "13.0"),
        cache_key("source", "sm_90", {"B": 1}, "13.0"),
        cache_key("source", "sm_90", {"A": 1}, "13.1"),
        cache_key("sources", "m_90", {"A": 1}, "13.0"),
    ],
)
def test_the_key_names_all_that_matters(other: str) -> None:
    """Another source, architecture, option or compiler gives another key."""
    assert other != KEY


def test_the_second_time_nothing_is_compiled(directory: Path) -> None:
    """What was compiled once is kept for its owner alone."""
    assert b"image" == cached(directory, KEY, lambda: b"image")
    assert b"image" == cached(directory, KEY, never)
    assert 0 == directory.stat().st_mode & 0o077
    assert [0] == [path.stat().st_mode & 0o077 for path in directory.iterdir()]


def damage(path: Path) -> None:
    """Change one byte of the image."""
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def cut(path: Path) -> None:
    """Lose the end."""
    path.write_bytes(path.read_bytes()[:40])


def empty(path: Path) -> None:
    """Lose everything."""
    path.write_bytes(b"")


def rename(path: Path) -> None:
    """Take the entry of another key."""
    key = cache_key("other", "sm_90", {}, "13.0")
    cached(path.parent, key, lambda: b"other")
    (path.parent / f"{key}.cubin").replace(path)


def let_others_write(path: Path) -> None:
    """Make the entry writable by all."""
    path.chmod(0o666)


def let_others_write_beside(path: Path) -> None:
    """Make the directory writable by all."""
    path.parent.chmod(0o777)


def link(path: Path) -> None:
    """Put a link in its place."""
    target = path.parent.parent / "target"
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "change", [damage, cut, empty, rename, let_others_write, let_others_write_beside, link], ids=lambda f: f.__name__
)
def test_what_may_not_be_ours_is_compiled_again(directory: Path, change: Callable[[Path], None]) -> None:
    """An entry that is damaged, another's, or could have been written by others is not trusted."""
    cached(directory, KEY, lambda: b"image")
    change(directory / f"{KEY}.cubin")
    assert b"fresh" == cached(directory, KEY, lambda: b"fresh")


def test_a_damaged_entry_is_replaced(directory: Path) -> None:
    """After a new compilation the entry is good again."""
    cached(directory, KEY, lambda: b"image")
    damage(directory / f"{KEY}.cubin")
    cached(directory, KEY, lambda: b"fresh")
    assert b"fresh" == cached(directory, KEY, never)


def test_a_directory_that_cannot_be_made_only_costs_time(tmp_path: Path) -> None:
    """Where nothing can be kept, the kernel is compiled and used."""
    (tmp_path / "file").write_bytes(b"")
    assert b"image" == cached(tmp_path / "file" / "kernels", KEY, lambda: b"image")


def test_a_full_disk_only_costs_time(directory: Path) -> None:
    """Where the file system takes no more, the kernel is used, the log says so, and no part of an entry stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with structlog.testing.capture_logs() as lines:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        try:
            assert b"image" * 1024 == cached(directory, KEY, lambda: b"image" * 1024)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ["kernel cannot be kept"] == [line["event"] for line in lines if line["log_level"] == "warning"]
    assert [] == list(os.scandir(directory))
    cached(directory, KEY, lambda: b"image")
    assert b"image" == cached(directory, KEY, never)


def test_a_failed_compilation_leaves_nothing(directory: Path) -> None:
    """An error of the compiler is passed on, and no entry is made of it."""
    with pytest.raises(AssertionError):
        cached(directory, KEY, never)
    assert not directory.exists() or [] == list(os.scandir(directory))


def test_the_default_follows_the_environment(tmp_path: Path) -> None:
    """Kernels are kept in the user's cache directory; a relative one is ignored, as the standard says."""
    assert tmp_path / "kvferry" / "kernels" == default_directory({"XDG_CACHE_HOME": str(tmp_path)})
    assert Path.home() / ".cache" / "kvferry" / "kernels" == default_directory({"XDG_CACHE_HOME": "cache"})

"""Compiled kernels kept on disk, so that only the first start compiles.

An entry is its key, the digest of the image, and the image. What is not exactly that, or could have been written by
another user, is compiled again: an image is code that runs with this process's rights.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

_log = structlog.get_logger("kvferry.device.kernels")

_DIGEST_BYTES = hashlib.sha256().digest_size
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def default_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where kernels are kept unless configured: ``kvferry/kernels`` in the user's cache directory."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "kvferry" / "kernels"


def cache_key(source: str, architecture: str, macros: Mapping[str, int | str], compiler: str) -> str:
    """Name of what this compiler makes of this source for this architecture."""
    parts = [source, architecture, compiler, *(f"{name}={value}" for name, value in sorted(macros.items()))]
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def cached(directory: Path, key: str, compile_image: Callable[[], bytes]) -> bytes:
    """The image kept under ``key``, or what ``compile_image`` gives, which is then kept.

    A directory that cannot be used costs a compilation at each start, and a line in the log.
    """
    path = directory / f"{key}.cubin"
    try:
        image, why_not = _read(path, key)
    except OSError as error:
        image, why_not = None, f"cannot be read: {error.strerror}"
    if image is not None:
        return image
    _log.info("kernel is compiled", path=str(path), reason=why_not)
    image = compile_image()
    try:
        _write(path, key, image)
    except OSError as error:
        _log.warning("kernel cannot be kept", path=str(path), reason=error.strerror)
    return image


def _read(path: Path, key: str) -> tuple[bytes | None, str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, "not kept yet"
    with os.fdopen(descriptor, "rb") as file:
        if not (_is_ours(os.fstat(descriptor)) and _is_ours(path.parent.stat())):
            return None, "others may have written it"
        content = file.read()
    header, digest, image = _split(content, key)
    if header != key.encode() or hashlib.sha256(image).digest() != digest:
        return None, "it is damaged"
    return image, ""


def _split(content: bytes, key: str) -> tuple[bytes, bytes, bytes]:
    start = len(key)
    return content[:start], content[start : start + _DIGEST_BYTES], content[start + _DIGEST_BYTES :]


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_MAY_WRITE


def _write(path: Path, key: str, image: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # readable and writable by its owner only
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.encode() + hashlib.sha256(image).digest() + image)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

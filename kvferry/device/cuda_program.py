"""Compiles kernels at run time. The only file that imports ``cuda.core``, and only when first used."""

import importlib
from collections.abc import Mapping
from pathlib import Path

from kvferry.core.errors import ConfigInvalid, TransportFailed
from kvferry.device.cuda import compiler_version
from kvferry.device.kernel_cache import cache_key, cached


def compiled(name: str, source: str, architecture: str, macros: Mapping[str, int | str], directory: Path) -> bytes:
    """The image of ``source`` for ``architecture`` (``sm_90``), from ``directory`` if it is kept there.

    Raises:
        ConfigInvalid: there is no run-time compiler.
        TransportFailed: the source does not compile.
    """
    key = cache_key(source, architecture, macros, compiler_version())
    return cached(directory, key, lambda: _compile(name, source, architecture, macros))


def _compile(name: str, source: str, architecture: str, macros: Mapping[str, int | str]) -> bytes:
    try:
        core = importlib.import_module("cuda.core")
    except ImportError as error:
        raise ConfigInvalid.of_field("device", "cuda", f"the package cuda-core cannot be loaded: {error}") from error
    options = core.ProgramOptions(
        name=name,
        arch=architecture,
        std="c++17",
        define_macro=[(macro, str(value)) for macro, value in macros.items()] or None,
    )
    try:
        program = core.Program(source, "c++", options)
        return bytes(program.compile("cubin").code)
    except Exception as error:
        # The library passes on exceptions of several layers below it.
        raise TransportFailed(f"compiling {name} for {architecture}: {error}") from error

"""Loads every plugin of the NIXL wheel that data planes use, and makes an agent. Writes one JSON object.

Its standard error has NIXL's own lines, in which the loader says why a plugin cannot be loaded.
"""

import json
import sys
from typing import Any

from kvferry.core.errors import KvferryError
from kvferry.device import cuda
from kvferry_dataplane.nixl_agent import NixlAgent, NixlLibrary


def main() -> None:
    """``error`` is set where there is no NIXL at all; ``agent_error`` where no agent can be made."""
    sys.stdout.write(json.dumps(_look()) + "\n")


def _look() -> dict[str, Any]:
    major = cuda.bindings_major()
    try:
        library = NixlLibrary(for_cuda=major is not None, cuda_major=major)
    except KvferryError as error:
        return {"error": str(error)}
    bare = library.api.nixl_agent("kvferry-doctor-plugins", library.api.nixl_agent_config(backends=[]))
    names = sorted(bare.get_plugin_list())
    loaded = [name for name in names if bare.get_plugin_mem_types(name)]
    return {
        "error": "",
        "wheel": library.wheel,
        "plugins": names,
        "loaded": loaded,
        "agent_error": _agent_error(library),
        "settings": {setting.name: setting.value for setting in library.settings if setting.from_user},
    }


def _agent_error(library: NixlLibrary) -> str:
    """Why a data plane could not make its agent; empty if it could."""
    try:
        NixlAgent(library, "kvferry-doctor").close()
    except KvferryError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()

"""Loads every plugin of the NIXL wheel that data planes use.

Writes one JSON object: ``error``, or ``wheel``, ``plugins`` and ``loaded``. Its standard error has NIXL's own lines, in
which the loader says why a plugin cannot be loaded.
"""

import json
import sys

from kvferry.core.backends import Transport
from kvferry.core.errors import KvferryError
from kvferry_dataplane.nixl_agent import NixlLibrary
from kvferry_dataplane.transports.opening import open_library


def main() -> None:
    """``error`` is set, and nothing else, where there is no NIXL."""
    try:
        answer = _look()
    except KvferryError as error:
        answer = {"error": error.message}
    sys.stdout.write(json.dumps(answer) + "\n")


def _look() -> dict[str, object]:
    library = open_library(Transport.NIXL_UCX, for_cuda=False)
    assert isinstance(library, NixlLibrary)
    agent = library.api.nixl_agent("kvferry-doctor", library.api.nixl_agent_config(backends=[]))
    names = sorted(agent.get_plugin_list())
    loaded = [name for name in names if agent.get_plugin_mem_types(name)]
    return {"error": "", "wheel": library.wheel, "plugins": names, "loaded": loaded}


if __name__ == "__main__":
    main()

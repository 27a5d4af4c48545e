"""Opens a transport as a data plane does and makes an agent: ``transport_child TRANSPORT [UCX_LIBRARY]``.

Writes one JSON object: ``error``, empty if it could; ``version`` of the library; ``ucx_library``, the file of the UCX
that was loaded for it, empty if none was.
"""

import json
import sys
from pathlib import Path

from kvferry.core.backends import Transport
from kvferry.core.errors import KvferryError
from kvferry_dataplane.transports.opening import open_library


def main() -> None:
    """Try it, for host memory."""
    answer = _open(Transport(sys.argv[1]), *sys.argv[2:]) | {"ucx_library": _loaded("libucp")}
    sys.stdout.write(json.dumps(answer) + "\n")


def _open(transport: Transport, ucx_library: str | None = None) -> dict[str, str]:
    version = ""
    try:
        library = open_library(transport, for_cuda=False, ucx_library=ucx_library)
        version = library.version
        library.make_agent("kvferry-doctor").close()
    except KvferryError as error:
        return {"error": error.message, "version": version}
    return {"error": "", "version": version}


def _loaded(name: str) -> str:
    """The file of a library that this process has loaded; empty if it has not."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.partition("/")[2]
        if Path(path).name.startswith(name):
            return f"/{path}"
    return ""


if __name__ == "__main__":
    main()

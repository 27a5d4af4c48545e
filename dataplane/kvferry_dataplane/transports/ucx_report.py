"""What UCX says that it uses: reads the tables that it prints of the protocols it has chosen. Pure.

For each kind of operation there is a table, headed by the name of the worker that chose and by the operation, with a
row for each range of sizes::

    | probe-7 intra-node cfg#1                                         |
    | remote memory read by ucp_get*(multi) into host memory from host |
    | Range  | Description | Config                                    |
    | 0..inf | zero-copy   | cma/memory                                |
"""

import re

from kvferry_dataplane.transports.transport import TransportUse

NAME_CHARS_MAX = 31
"""UCX cuts a worker's name to this."""
_CELLS = re.compile(r"\|(.*)\|\s*$")
_READ = re.compile(r"remote memory read by ucp_get\S* ")
_USED = re.compile(r"([a-z][a-z0-9_]*)/([A-Za-z0-9_.:-]+)(?:/path\d+)?")
_SEPARATOR = "+"


def read_use(text: str, worker: str) -> TransportUse | None:
    """What a worker uses for the largest reads; None if the text does not say.

    ``text`` is what UCX has printed, by any number of workers; ``worker`` is the name of one.
    """
    found = None
    name = is_read = False
    for line in text.splitlines():
        match = _CELLS.search(line)
        if match is None:
            # A rule between rows leaves the table as it is; any other line ends it.
            name, is_read = (name, is_read) if line.rstrip().endswith("+") else (False, False)
            continue
        cells = [cell.strip() for cell in match[1].split("|")]
        if len(cells) == 1:
            is_name = cells[0].split(" ")[0] == worker[:NAME_CHARS_MAX]
            is_read = name and _READ.match(cells[0]) is not None
            name = is_name or is_read
        elif is_read and len(cells) == 3 and cells[0].endswith("inf"):
            found = _use(cells[2], cells[1])
    return found


def _use(config: str, description: str) -> TransportUse | None:
    used = _USED.findall(config)
    if not used:
        return None
    transports, devices = (_SEPARATOR.join(dict.fromkeys(names)) for names in zip(*used, strict=True))
    return TransportUse(transports, devices, description)

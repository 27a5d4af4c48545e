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
_WORKER = re.compile(r"(\S+) .*cfg#\d+")
_READ = re.compile(r"remote memory read by ucp_get\S* ")
_USED = re.compile(r"([a-z][a-z0-9_]*)/([A-Za-z0-9_.:-]+)(?:/path\d+)?")
_SEPARATOR = "+"


def read_uses(text: str) -> dict[str, TransportUse]:
    """What each worker uses for the largest reads, by its name; ``text`` is what UCX has printed."""
    found: dict[str, TransportUse] = {}
    name, is_read = "", False
    for line in text.splitlines():
        match = _CELLS.search(line)
        if match is None:
            # A rule between rows leaves the table as it is; any other line ends it.
            name, is_read = (name, is_read) if line.rstrip().endswith("+") else ("", False)
            continue
        cells = [cell.strip() for cell in match[1].split("|")]
        if len(cells) == 1:
            is_read = bool(name) and _READ.match(cells[0]) is not None
            name = name if is_read else _name_of(cells[0])
        elif is_read and len(cells) == 3 and cells[0].endswith("inf"):
            used = _USED.findall(cells[2])
            if used:
                transports, devices = (_SEPARATOR.join(dict.fromkeys(names)) for names in zip(*used, strict=True))
                found[name] = TransportUse(transports, devices, cells[1])
    return found


def _name_of(cell: str) -> str:
    """The worker that a table is of, where a cell says that."""
    match = _WORKER.fullmatch(cell)
    return match[1] if match is not None else ""

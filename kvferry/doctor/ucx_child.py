"""Asks a UCX library what it can use here: ``ucx_child LIBRARY``.

Writes one JSON object: ``version``, ``report``, ``error``. The report is UCX's own (`ucp_context_print_info`), so it is
that of the very library that moves the bytes, also where it was renamed and has no `ucx_info` beside it. Standard error
has what UCX says on the way, at the level in ``UCX_LOG_LEVEL``.
"""

import ctypes
import json
import os
import sys
import tempfile

_API = (1, 10)
"""What is called here has not changed since."""
_PARAMS_BYTES = 1024
"""More than any release's `ucp_params_t`."""
_FIELD_FEATURES = 1
_FEATURE_RMA, _FEATURE_AMO32, _FEATURE_AMO64 = 1 << 1, 1 << 2, 1 << 3


def main() -> None:
    """Read the library's report."""
    sys.stdout.write(json.dumps(_look(sys.argv[1])) + "\n")


def _look(path: str) -> dict[str, object]:
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        return {"version": "", "report": "", "error": str(error)}
    major, minor, release = (ctypes.c_uint() for _ in range(3))
    library.ucp_get_version(*map(ctypes.byref, (major, minor, release)))
    version = f"{major.value}.{minor.value}.{release.value}"
    parameters = (ctypes.c_uint64 * (_PARAMS_BYTES // 8))()
    parameters[0], parameters[1] = _FIELD_FEATURES, _FEATURE_RMA | _FEATURE_AMO32 | _FEATURE_AMO64
    context = ctypes.c_void_p()
    status = library.ucp_init_version(*_API, ctypes.byref(parameters), None, ctypes.byref(context))
    if status != 0:
        library.ucs_status_string.restype = ctypes.c_char_p
        return {"version": version, "report": "", "error": library.ucs_status_string(status).decode()}
    return {"version": version, "report": _report(library, context), "error": ""}


def _report(library: ctypes.CDLL, context: ctypes.c_void_p) -> str:
    """What UCX prints about a context."""
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    with tempfile.TemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
        library.ucp_context_print_info(context, stream)
        libc.fclose(stream)
        file.seek(0)
        return file.read().decode(errors="replace")


if __name__ == "__main__":
    main()

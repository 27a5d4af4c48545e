"""What tests need of the machine that not every machine grants."""

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry.launch.namespaces import NamespacePair


def _refusal() -> str:
    try:
        with NamespacePair():
            return ""
    except ConfigInvalid as error:
        return error.message


_refused = _refusal()
needs_namespaces = pytest.mark.skipif(bool(_refused), reason=_refused)
"""Skips where no network namespaces can be made."""

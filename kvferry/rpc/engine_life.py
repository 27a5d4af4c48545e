"""How an engine's process says which it is, when it opens and on each of its streams of pulls."""

import secrets

LIFE_KEY = "kvferry-engine-life"
"""Metadata of EngineService.Pull: ``OpenEngineRequest.life`` in hexadecimal."""
LIFE_BYTES = 16


def new_life() -> bytes:
    """Of a process that begins."""
    return secrets.token_bytes(LIFE_BYTES)

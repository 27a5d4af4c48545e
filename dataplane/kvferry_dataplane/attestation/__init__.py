"""Finds out, by reading real bytes, on which ways a peer is reached, by which transport, and how fast."""

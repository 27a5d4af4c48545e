"""Reads of peers' memory: bounded, fenced, and never writing after they have ended."""

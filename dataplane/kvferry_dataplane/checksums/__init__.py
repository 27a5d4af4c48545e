"""Checksums of what is published and of what has arrived."""

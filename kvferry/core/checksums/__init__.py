"""Checksums of KV that do not depend on how it lies in memory, so that any two layouts of a model can be compared."""

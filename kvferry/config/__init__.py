"""How control and data plane are configured: a file, the environment and flags, and where each value came from.

A flag goes before the environment, that before the file, that before an engine's TensorRT-LLM file, that before the
default. What is not known is refused with the nearest known name, wherever it stands.
"""

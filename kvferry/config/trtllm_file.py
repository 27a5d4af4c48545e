"""Reads the engine's file that a configuration names."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from kvferry.config.files import parsed_yaml, read_text
from kvferry.config.trtllm_engine import EngineConfig, engine_config
from kvferry.config.values import Value
from kvferry.core.errors import ConfigInvalid

KEY = "trtllm_config"


def engine_of(given: Mapping[str, Value]) -> EngineConfig | None:
    """Read the file that ``trtllm_config`` names, as TensorRT-LLM does; its other sections are left alone.

    Raises:
        ConfigInvalid: it cannot be read, is no YAML, or a value of the section is wrong.
    """
    named = given.get(KEY)
    if named is None:
        return None
    if not isinstance(named.raw, str):
        raise ConfigInvalid.of_field(KEY, named.raw, "must be the path of a file")
    path = Path(named.raw)
    values = parsed_yaml(path, read_text(path, KEY), KEY, yaml.SafeLoader)
    return engine_config(str(path), values)

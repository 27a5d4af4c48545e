"""The registry of variables against the keys that they follow from."""

import pytest

from kvferry.config import variables
from kvferry.config.flags import Program
from kvferry_control.config_keys import PROGRAM as CONTROL
from kvferry_dataplane.config_keys import PROGRAM as DATA_PLANE


@pytest.mark.parametrize(
    ("program", "registered"), [(CONTROL, variables.CONTROL), (DATA_PLANE, variables.DATA_PLANE)], ids=lambda each: ""
)
def test_every_key_has_its_variable_in_the_registry(program: Program, registered: frozenset[str]) -> None:
    """Otherwise a process refuses what is meant for another."""
    assert registered == {key.variable for key in program.keys}


@pytest.mark.parametrize("program", [CONTROL, DATA_PLANE], ids=["control", "dataplane"])
def test_no_two_keys_share_a_name(program: Program) -> None:
    """Flags and variables tell keys apart, and none is one that every process has."""
    flags = [key.flag for key in program.keys]
    assert len(flags) == len({*flags, "--config", "--ready-fd"}) - 2
    assert len(flags) == len({key.variable for key in program.keys})
    assert [] == [key.name for key in program.keys if not key.help]

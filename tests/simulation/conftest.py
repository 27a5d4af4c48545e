"""What a run of the simulation's tests says at its end."""

import pytest

SUMMARY = "summary"
"""The property of a test whose value is shown once all have run."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how much was simulated."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == SUMMARY:
                terminalreporter.write_line(str(value))

"""The doctor as a real process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KVFERRY = (sys.executable, "-m", "kvferry.cli.main")
WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What it wrote and how it ended."""

    status: int
    whole: Mapping[str, Any]
    findings: Mapping[str, Mapping[str, Any]]
    """By the name of the check; of several, the last."""

    def status_of(self, check: str) -> str:
        """Of one finding."""
        return str(self.findings[check]["status"])


def diagnose(*arguments: str, environment: Mapping[str, str] | None = None, launcher: Sequence[str] = ()) -> Diagnosis:
    """Run ``kvferry doctor --json ARGUMENTS``, through ``launcher`` where there is one."""
    command = [*launcher, *KVFERRY, "doctor", "--json", *arguments]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    done = subprocess.run(  # noqa: S603
        command,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=surroundings | dict(environment or {}),
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    whole = json.loads(done.stdout)
    return Diagnosis(done.returncode, whole, {finding["check"]: finding for finding in whole["findings"]})

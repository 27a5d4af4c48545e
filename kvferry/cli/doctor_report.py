"""What ``kvferry doctor`` does and writes."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvferry.cli.terminal import console, print_json
from kvferry.cli.transports import data_plane_config
from kvferry.core.errors import ConfigInvalid
from kvferry.doctor.checks import Choice, Subject, etcd_checks, machine_checks, subject_of
from kvferry.doctor.examination import examine
from kvferry.doctor.findings import Finding, Status, exit_status, worst
from kvferry.doctor.pair_checks import PairSubject, pair_check

_STYLES = {
    Status.OK: "green",
    Status.SLOW: "yellow",
    Status.BROKEN: "bold red",
    Status.NONE: "dim",
    Status.SKIPPED: "dim",
}


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """As given on the command line."""

    config: Path | None
    etcd: str | None
    backend: str | None
    nixl_backend: str | None
    peer: str | None
    own: str | None
    endpoint: str | None


async def doctor(options: DoctorOptions, *, json_output: bool) -> None:
    """Look, and write what was found.

    Raises:
        ConfigInvalid: an option is wrong.
        typer.Exit: with a status that says the worst, if it is worse than OK.
    """
    plane = data_plane_config(options.backend, options.nixl_backend)
    subject = subject_of(options.config, options.etcd, Choice(plane.transport, plane.ucx_library))
    between = _pair_subject(options, subject)
    findings = await examine(etcd_checks(subject))
    findings += await examine(machine_checks(subject))
    if between is not None:
        findings += await examine([pair_check(between)])
    if json_output:
        print_json(as_json(findings))
    else:
        console().print(as_text(findings))
    if status := exit_status(findings):
        raise typer.Exit(status)


def _pair_subject(options: DoctorOptions, subject: Subject) -> PairSubject | None:
    own, endpoint = options.own or subject.worker, options.endpoint or subject.endpoint
    if options.peer is None:
        if options.own is not None:
            raise ConfigInvalid.of_field("--from", options.own, "goes with --peer")
        return None
    if own is None:
        raise ConfigInvalid.of_field("--from", "(missing)", "--peer needs the other worker's name, or --config")
    if endpoint is None:
        raise ConfigInvalid.of_field("--endpoint", "(missing)", "--peer needs any control's host:port, or --config")
    return PairSubject(own, options.peer, endpoint)


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """One object: ``host``, ``worst``, ``exit_status``, and ``findings`` as :meth:`Finding.to_dict` gives them."""
    return {
        "host": socket.gethostname(),
        "worst": worst(findings).value,
        "exit_status": exit_status(findings),
        "findings": [finding.to_dict() for finding in findings],
    }


def as_text(findings: Sequence[Finding]) -> RenderableType:
    """A line for each finding; faults have two more: what it costs, and what to do."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column()
    for finding in findings:
        grid.add_row(Text(finding.status.value, _STYLES[finding.status]), finding.check, _words(finding))
    counts = {status: sum(finding.status is status for finding in findings) for status in (Status.BROKEN, Status.SLOW)}
    said = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
    return Group(grid, Text(said or "nothing to do", _STYLES[worst(findings)]))


def _words(finding: Finding) -> Text:
    words = Text(finding.found)
    if finding.status.is_fault:
        words.append(f"\ncosts: {finding.costs}\ndo: ").append(finding.do, "bold")
    return words

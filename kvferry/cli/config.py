"""``kvferry config show``."""

import os
from collections.abc import Mapping, Sequence

from rich.markup import escape

from kvferry.cli.terminal import console, print_json, table
from kvferry.config.settings import Settings
from kvferry.config.values import Source
from kvferry.core.errors import ConfigInvalid
from kvferry_control import config_reading as control
from kvferry_dataplane import config_reading as dataplane


def show(process: str, arguments: Sequence[str], *, json_output: bool) -> None:
    """Show what ``kvferry PROCESS ARGUMENTS`` would run with.

    Raises:
        ConfigInvalid: it would refuse that; all that could be read is shown before.
    """
    settings = _settings(process, arguments)
    refusal: ConfigInvalid | None = None
    comes_to: Mapping[str, str] = {}
    try:
        comes_to = _comes_to(process, settings)
    except ConfigInvalid as error:
        refusal = error
    if json_output:
        print_json(_document(process, settings, comes_to, refusal))
    else:
        _show_table(process, settings, comes_to)
    if refusal is not None:
        raise refusal


def _settings(process: str, arguments: Sequence[str]) -> Settings:
    if process == "control":
        return control.control_settings(arguments, os.environ)
    return dataplane.data_plane_settings(arguments, os.environ)


def _comes_to(process: str, settings: Settings) -> dict[str, str]:
    """What several values come to together."""
    if process == "control":
        return {"pull_timeout_s": f"{control.config_of(settings).pull_timeout_s:g}"}
    config = dataplane.config_of(settings)
    return {"transport": config.transport.value, "copy_thread_count": str(config.copy_thread_count)}


def _document(
    process: str, settings: Settings, comes_to: Mapping[str, str], refusal: ConfigInvalid | None
) -> dict[str, object]:
    values = {
        key.name: {
            "value": text,
            "source": origin.source.value,
            "name": origin.name or None,
            "path": origin.path or None,
        }
        for key, text, origin in settings.shown()
    }
    return {
        "process": process,
        "values": values,
        "comes_to": dict(comes_to),
        "notes": list(settings.notes),
        "refusal": None if refusal is None else refusal.message,
    }


def _show_table(process: str, settings: Settings, comes_to: Mapping[str, str]) -> None:
    out = console()
    rows = []
    for key, text, origin in settings.shown():
        value = ("(missing)" if key.required else "-") if text is None else escape(text)
        where = "[dim]default" if origin.source is Source.DEFAULT else escape(str(origin))
        rows.append((key.name, value, where))
    out.print(table(f"kvferry {process}", ("key", "value", "from"), rows))
    if comes_to:
        out.print(table("which comes to", ("", ""), [(name, escape(text)) for name, text in comes_to.items()]))
    for note in settings.notes:
        out.print(f"note: {escape(note)}")

"""``xnatfs config show``: every option, its value and its origin. Changes nothing, asks no server."""

from __future__ import annotations

import sys

import click

from xnatfs.cli.options import (
    CACHE,
    MESSAGES,
    MOUNT,
    OPTIONS,
    SERVER,
    VIEW,
    Option,
    OptionsCommand,
    Settings,
    with_options,
)

_UNITS = ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


@click.command(cls=OptionsCommand)
@with_options(SERVER, VIEW, CACHE, MOUNT, MESSAGES)
def show(settings: Settings) -> None:
    """Print each option, its value and its origin, separated by tabs when piped."""
    rows = [(option.key, shown(option, settings), settings.origins[option.key]) for option in OPTIONS]
    if not sys.stdout.isatty():
        click.echo("\n".join("\t".join(row) for row in rows))
        return
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for key, value, origin in rows:
        click.echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


@click.group(commands=[show])
def config() -> None:
    """Show the options in force and where each comes from.

    Options are read from flags, XNATFS_... variables and the file config.toml, in this order.
    """


def shown(option: Option, settings: Settings) -> str:
    """A value as a user would write it, "-" when there is none, passwords masked."""
    value = getattr(settings, option.name)
    if value is None or value == ():
        return "-"
    if option.secret:
        return _masked(str(value))
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if option.metavar == "SIZE":
        return _size(value)
    if option.metavar == "TIME":
        return f"{value:g}s"
    if option.metavar == "PERCENT":
        return f"{value * 100:g}%"
    return f"{value:03o}" if option.metavar == "OCTAL" else str(value)


def _size(value: int) -> str:
    for unit, letter in _UNITS:
        if value % unit == 0:
            return f"{value // unit}{letter}"
    return str(value)


def _masked(url: str) -> str:
    head, at, host = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{host}" if at else url

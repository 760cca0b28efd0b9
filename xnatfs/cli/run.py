"""``xnatfs run``: an archive mounted for as long as one command runs. For batch jobs, which must leave nothing behind.

The main thread waits for the command and hands signals on to it; there is no other. What was mounted is taken away
however the command ends; when this process itself is killed, the mount's process unmounts and ends (``cli/owned.py``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from xnatfs.cli import daemon
from xnatfs.cli.credentials import config_for
from xnatfs.cli.main import report_error
from xnatfs.cli.mount import START_SLACK_S
from xnatfs.cli.options import CACHE, MESSAGES, MOUNT, SERVER, VIEW, OptionsCommand, Settings, with_options
from xnatfs.cli.owned import STOP_SIGNALS, Stopped, ignore_signals, mount_directory, mounted, signals_raise

PLACE = "{}"
VARIABLE = "XNATFS_MOUNT"

BY_SIGNAL = 128  # plus its number, as shells report it
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # likewise

HANDED_ON = (*STOP_SIGNALS, signal.SIGUSR1, signal.SIGUSR2)
"""Signals for the command. Batch systems send the latter two ahead of a time limit, to whoever they know."""

_SI_KERNEL = 0x80  # asm-generic/siginfo.h; the terminal's Ctrl-C, which reaches the command by itself


@click.command(cls=OptionsCommand)
@click.argument("source")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@with_options(SERVER, VIEW, CACHE, MOUNT, MESSAGES)
def run(source: str, command: tuple[str, ...], settings: Settings) -> int:
    """Run a command with an archive mounted, and unmount it.

    The archive is mounted in a temporary directory, of which the command learns by the variable XNATFS_MOUNT and by
    any {} in its arguments. It runs where you are, with your environment but for passwords. At its end the mount is
    gone, and the exit code is that of the command: 128 and the signal when one ended it, 127 when it was not found.
    """
    config = config_for(source, settings)
    from xnatfs.frontends import fuse_binding

    fuse_binding.load(config.mount.fuse)
    daemon.forget_secrets()
    limit_s = 2 * config.http.timeout_s + START_SLACK_S
    with signals_raise(), contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(mount_directory(None))
            stack.enter_context(mounted(config, place, settings.log_file, limit_s))
            arguments = [word.replace(PLACE, str(place)) for word in command]
            return run_and_wait(arguments, environment_for(place))
        except Stopped as stopped:
            return BY_SIGNAL + stopped.number
        finally:
            ignore_signals()  # nothing may stop the taking down, which is what leaving the stack does


def environment_for(place: Path) -> dict[str, str]:
    """Ours, which holds no password by now, but for one that a proxy may have."""
    kept = {name: value for name, value in os.environ.items() if not (name == "XNATFS_PROXY" and "@" in value)}
    return kept | {VARIABLE: str(place)}


def run_and_wait(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start a command, hand on what signals it is sent by way of us, and return its exit code as a shell would."""
    watched = {*HANDED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)

    def as_before() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        process = subprocess.Popen(command, env=environment, preexec_fn=as_before)
        while process.poll() is None:
            told = signal.sigwaitinfo(watched)
            if told.si_signo != signal.SIGCHLD and told.si_code != _SI_KERNEL:
                process.send_signal(told.si_signo)
    except OSError as exc:
        report_error(f"run: {command[0]}: {exc.strerror}")
        return NOT_FOUND if isinstance(exc, FileNotFoundError) else NOT_EXECUTABLE
    finally:
        for number in HANDED_ON:
            signal.signal(number, signal.SIG_IGN)
        as_before()
    code = process.returncode
    return BY_SIGNAL - code if code < 0 else code

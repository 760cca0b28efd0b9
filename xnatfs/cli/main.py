"""The ``xnatfs`` command group and the one place where failures become lines and exit codes. Holds no command itself.

Commands live in their own modules, imported when they are run: ``xnatfs --help`` imports click and nothing else.
Runs in the main thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from xnatfs import __version__
from xnatfs.cli.options import Invocation
from xnatfs.errors import AccessDenied, CredentialsError, LoginFailed, Unavailable, UsageError, XnatfsError

# name -> (module, attribute, what `xnatfs --help` says); help is kept here so that listing it imports no command.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("xnatfs.cli.demo", "demo", "Mount a sample archive, served on this machine."),
    "mount": ("xnatfs.cli.mount", "mount", "Mount an archive as a read-only folder."),
    "umount": ("xnatfs.cli.mount", "umount", "Unmount it."),
    "run": ("xnatfs.cli.run", "run", "Run a command with an archive mounted, and unmount it."),
    "ls": ("xnatfs.cli.inspect", "ls", "List directories of an archive, without mounting it."),
    "stat": ("xnatfs.cli.inspect", "stat", "Show what is known of files and directories."),
    "cat": ("xnatfs.cli.inspect", "cat", "Write files of an archive to standard output."),
    "get": ("xnatfs.cli.copy", "get", "Copy a file or a directory of an archive, without mounting it."),
    "prefetch": ("xnatfs.cli.copy", "prefetch", "Fill the cache of a mount, ahead of use."),
    "status": ("xnatfs.cli.status", "status", "Show what is mounted and how it is doing."),
    "cache": ("xnatfs.cli.cache", "cache", "Look after the block cache on disk."),
    "login": ("xnatfs.cli.account", "login", "Exchange a password for a token, and keep that."),
    "logout": ("xnatfs.cli.account", "logout", "End the token of `xnatfs login`, here and on the server."),
    "datasets": ("xnatfs.cli.datasets", "datasets", "List public imaging data sets, and how to mount each."),
    "doctor": ("xnatfs.cli.doctor", "doctor", "Check what a mount needs: FUSE, cache, credentials, server."),
    "config": ("xnatfs.cli.settings", "config", "Show the options in force and where each comes from."),
}

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_NOT_LOGGED_IN = ("anonymous", "--anonymous")
_LOCKING = "accounts lock after repeated failures: check user and password before trying again"


def _open_standard_streams() -> None:
    """Open on /dev/null what the caller has closed (``>&-``): Python has no stream for it then, and the next file to be
    opened, a database of the cache say, would get the number that messages are written to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdin = sys.stdin or os.fdopen(os.open(os.devnull, os.O_RDWR))
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_RDWR), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_RDWR), "w")


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(UsageError.exit_code)  # in every version of click
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        import importlib

        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            nearest = difflib.get_close_matches(args[0], COMMANDS, n=1)
            suggestion = f"; did you mean {nearest[0]}?" if nearest else ""
            raise click.UsageError(f"there is no command {args[0]!r}{suggestion}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="xnatfs", message="%(prog)s %(version)s")
def cli() -> None:
    """An XNAT imaging archive as a read-only folder.

    SOURCE is https://host[/context] of an XNAT server, optionally with #/PROJECT[/SUBJECT[/SESSION]]; or a bucket
    (s3://bucket/prefix), index pages (web+https://host/path) or a data set (dataset:NAME). Exit codes: 0 done,
    1 failed, 2 usage, 3 credentials, 4 server unreachable, 5 FUSE missing or mount refused.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; failures are one line on stderr, and a hint where there is one."""
    invocation = Invocation()
    _open_standard_streams()
    try:
        if arguments is None:
            from xnatfs.cli.mount8 import mount_arguments

            called = mount_arguments(sys.argv[0], sys.argv[1:], COMMANDS)
            if called == []:
                return 0
            arguments = called
        code = cli.main(args=arguments, prog_name="xnatfs", obj=invocation, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.ClickException as exc:
        return _report_click(exc)
    except BrokenPipeError:
        return _reader_went_away()
    except XnatfsError as exc:
        return _report(invocation, exc, str(exc), exc.hint, exc.exit_code)
    except OSError as exc:
        return _report(invocation, exc, describe(exc), hint_for(exc, invocation), exit_code_for(exc, invocation))
    except Exception as exc:  # noqa: BLE001 (the last resort: a fault of ours is one line too, unless -vv)
        text = f"unexpected {type(exc).__name__}: {exc}"
        return _report(invocation, exc, text, "this is a fault of xnatfs; -vv shows where", 1)


def describe(error: OSError) -> str:
    """ "what failed: why" of an ``OSError``, whether ours or the system's."""
    reason = str(error.strerror or error)
    return f"{error.filename}: {reason}" if error.filename else reason


def exit_code_for(error: OSError, invocation: Invocation) -> int:
    """The error's own exit code; a door closed to a visitor without a login is a matter of credentials."""
    if isinstance(error, AccessDenied) and invocation.credentials_origin in _NOT_LOGGED_IN:
        return CredentialsError.exit_code
    return int(getattr(error, "exit_code", 1))


def hint_for(error: OSError, invocation: Invocation) -> str:
    """What to do about a failed operation: the error's own hint, or what fits its kind."""
    hint = str(getattr(error, "hint", ""))
    origin = invocation.credentials_origin
    if isinstance(error, AccessDenied) and origin in _NOT_LOGGED_IN:
        return hint or "you are not logged in: give --user NAME, set XNAT_USER and XNAT_PASS, or fill in ~/.netrc"
    if isinstance(error, LoginFailed):
        if hint.startswith("run: "):
            return hint  # it can be pasted as it is
        return (hint or _LOCKING) + (f"; they came from {origin}" if origin else "")
    if isinstance(error, Unavailable):
        return hint or "is the address right, and does the server answer from here (network, VPN, --proxy)?"
    return hint


def report_error(message: str, hint: str = "") -> None:
    """The form of every failure: one line, and a hint where there is one."""
    from xnatfs.cli.text import one_line

    click.echo(f"xnatfs: {one_line(message)}", err=True)
    if hint:
        click.echo(f"hint: {one_line(hint)}", err=True)


def _report(invocation: Invocation, error: BaseException, message: str, hint: str, code: int) -> int:
    if invocation.verbose >= 2:
        import traceback

        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    report_error(message, hint)
    return code


def _report_click(error: click.ClickException) -> int:
    """A usage error of click's own: an unknown flag, a missing argument, nothing at all."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2 and later
        click.echo(error.format_message(), err=True)
        return error.exit_code
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "xnatfs"
    words = command.split()[1:]
    report_error(": ".join([*words, error.format_message()]), f"{command} --help")
    return error.exit_code


def _reader_went_away() -> int:
    """`xnatfs ls … | head`: nobody reads on, which is not worth a line; the interpreter must not say so either."""
    import os

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    return 1

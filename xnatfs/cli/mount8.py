"""What mount(8) and /etc/fstab call us with, as arguments of ``xnatfs mount``. Pure functions; mounts nothing itself.

For the type xnatfs mount(8) runs ``/sbin/mount.xnatfs SOURCE DIR [-sfnv] [-t TYPE] [-o OPTIONS]``, for fuse.xnatfs the
helper of FUSE runs ``xnatfs SOURCE DIR -o OPTIONS``.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from xnatfs.errors import UsageError

HELPERS = ("mount.xnatfs", "mount.fuse.xnatfs")


def mount_arguments(program: str, arguments: Sequence[str], commands: Container[str]) -> list[str] | None:
    """The command line of `xnatfs` that mount(8) means; [] when nothing is to be done, None when it did not call.

    Args:
        program: As what we were called.
        commands: First arguments that are our own.
    Raises:
        UsageError: a helper's command line that is none.
    """
    if Path(program).name in HELPERS:
        return _of_helper(arguments)
    if len(arguments) == 4 and arguments[2] == "-o" and arguments[0] not in commands and arguments[0][:1] != "-":
        return ["mount", "-o", arguments[3], "--", *arguments[:2]]
    return None


def _of_helper(arguments: Sequence[str]) -> list[str]:
    import getopt

    usage = "mount.xnatfs SOURCE MOUNTPOINT [-v] [-o KEY=VALUE[,...]]"
    try:
        flags, places = getopt.gnu_getopt(list(arguments), "sfnvo:t:")
    except getopt.GetoptError as exc:
        raise UsageError(f"mount.xnatfs: {exc.msg}", usage) from None
    if len(places) != 2:
        raise UsageError("mount.xnatfs: SOURCE and MOUNTPOINT are wanted", usage)
    if any(flag == "-f" for flag, _ in flags):  # "fake": all but the mounting
        return []
    options = [word for flag, value in flags if flag in ("-o", "-v") for word in (flag, value) if word]
    return ["mount", *options, "--", *places]

"""How the commands write sizes, spans of time and messages. Pure functions."""

from __future__ import annotations

_UNITS = ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB"))


def size_text(count: int) -> str:
    """Bytes with one digit behind the point, in powers of 1024."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def span_text(seconds: float) -> str:
    """Whole seconds, minutes, hours or days, whichever is at least two."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{int(seconds / unit)} {name}"
    return f"{max(0, int(seconds))} s"


def one_line(text: str) -> str:
    """A message as one line, in which nothing can steer a terminal: names in it are the archive's.

    Blanks within it stay: a path may have two in a row, and is copied from here.
    """
    line = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return line if line.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)

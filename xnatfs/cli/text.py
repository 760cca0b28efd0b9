"""How the commands write sizes and spans of time. Pure functions."""

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

"""Numbers that a server says. Pure functions."""

from __future__ import annotations

MAX_DIGITS = 18
"""Of a size: an exabyte. Python refuses to read thousands, by a ValueError."""


def whole_number(text: str) -> int | None:
    """The number that a header or a page says; None where none stands there, or one that is no size of anything."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None

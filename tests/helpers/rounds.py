"""How many cases hypothesis makes up where a test names its own number: as many times more as ``--full`` asks for."""

from __future__ import annotations

from hypothesis import settings

USUAL = 100  # hypothesis's own number where a test names none


def rounds(number: int) -> int:
    return number * settings().max_examples // USUAL

"""What the values of options mean: sizes, durations, shares, paths, addresses. Pure functions of text.

Each raises ``ValueError`` with what is wrong and what to write, which whoever reads options puts behind its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from xnatfs.config import GIB, KIB, MIB

_SIZE_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}
_DURATION_UNITS_S = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PROXIES = ("http", "https", "socks5", "socks5h")
_LONGEST_DAYS = 10_000  # twice as long, in nanoseconds, still fits what the system waits for
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z%]*)")


def parse_size(text: str) -> int:
    """Bytes of ``20G``, ``1.5M``, ``128MiB``, ``4096``; units are powers of 1024."""
    number, unit = _number_and_unit(text)
    factor = _SIZE_UNITS.get(unit.upper().removesuffix("B").removesuffix("I"))
    if number is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write 20G, 512M or a number of bytes")
    return int(number * factor)


def parse_duration(text: str) -> float:
    """Seconds of ``60s``, ``5m``, ``250ms``, ``1h``, ``60``."""
    number, unit = _number_and_unit(text)
    factor = _DURATION_UNITS_S.get(unit.lower())
    if number is None or factor is None:
        raise ValueError(f"{text!r} is not a duration; write 60s, 5m or 1h")
    if number * factor > _LONGEST_DAYS * _DURATION_UNITS_S["d"]:
        raise ValueError(f"{text!r} is longer than {_LONGEST_DAYS} days")
    return number * factor


def parse_fraction(text: str) -> float:
    """A fraction in [0, 1) of ``5%`` or ``0.05``."""
    number, unit = _number_and_unit(text)
    fraction = None if number is None or unit not in ("", "%") else number / 100 if unit else number
    if fraction is None or fraction >= 1:
        raise ValueError(f"{text!r} is not a share; write 5%")
    return fraction


def parse_umask(text: str) -> int:
    """The number that octal digits such as ``022`` stand for."""
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", text):
        raise ValueError(f"{text!r} is not a umask; write octal digits such as 022")
    return int(text.removeprefix("0o"), 8)


def parse_bool(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


def parse_path(text: str) -> Path:
    """An absolute path: a daemon changes its working directory. ``~`` is the home directory."""
    if not text:
        raise ValueError("the path is empty")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"there is no home directory for {text!r}") from None


def parse_proxy(text: str) -> str:
    """The URL as it is. Errors do not repeat it: it may hold the proxy's password."""
    try:
        parts = urlsplit(text)
        whole = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", text)
    except ValueError:
        whole = False
    if not whole or parts.scheme not in _PROXIES or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("a proxy is written http://host:port; / ? # in its password as %2F %3F %23")
    return text


def parse_url(text: str) -> str:
    """A server's address, without a slash at its end."""
    if not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", text):
        raise ValueError(f"{text!r} is not the address of a server; write https://host")
    return text.rstrip("/")


def _number_and_unit(text: str) -> tuple[float | None, str]:
    match = _NUMBER.fullmatch(text.strip())
    return (float(match[1]), match[2]) if match else (None, "")


def integer(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or not least <= int(text) <= most:
            raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def positive(parse_number: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = parse_number(text)
        if number <= 0:
            raise ValueError(f"{text!r} is not more than zero")
        return number

    return parse


def parse_block_size(text: str) -> int:
    # A block is held in memory whole, once a reader, and is made of grains (reading/prefetch.py).
    size = parse_size(text)
    if not 128 * KIB <= size <= 64 * MIB or size % (128 * KIB):
        raise ValueError(f"{text!r} is not a block size; write a multiple of 128K, up to 64M")
    return size


def choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is none of {', '.join(words)}")
        return text

    return parse

"""Whether two validators of a file speak of the same bytes. Pure functions; ``archives/base.py`` says what one is."""

from __future__ import annotations

from calendar import timegm
from email.utils import parsedate_tz
from time import strptime

from xnatfs.archives.base import WEAK

ZONE_S = 900  # time zones differ by multiples of this
DOS_S = 2  # a zip tells times to two seconds, rounded down


def validators_agree(one: str, other: str) -> bool:
    """Whether two validators of a file, whose length is the same, may name the same bytes.

    Equal ones do, and so do members of one CRC. A zip's time against a Last-Modified: the zip does not tell its time
    zone, so they agree when they differ by whole quarters of an hour; of changes that leave the length alone, and that
    no listing shows, this sees all but one in 450.
    """
    if one == other:
        return True
    if one.startswith(WEAK) == other.startswith(WEAK):
        crc = one.partition(" ")[2]
        return one.startswith(WEAK) and bool(crc) and crc == other.partition(" ")[2]
    weak, strong = (one, other) if one.startswith(WEAK) else (other, one)
    date = parsedate_tz(strong)
    try:
        member_s = timegm(strptime(weak[len(WEAK) :].partition(" ")[0], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return False
    return date is not None and (timegm(date[:9]) - member_s) % ZONE_S < DOS_S

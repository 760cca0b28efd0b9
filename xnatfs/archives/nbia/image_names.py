"""What NBIA calls the images of a series, ``1-01.dcm``, worked out from the images themselves.

NBIA tells these names with the images; another store of the same images does not. They follow from two numbers that
stand near each file's beginning. Pure functions of bytes; no requests. The rule: release notes of NBIA Data Retriever
3.6 (April 2020).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import NamedTuple

from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from xnatfs.archives.nbia.dicom import MARK, PREAMBLE

log = logging.getLogger(__name__)

_ACQUISITION = BaseTag(0x00200012)
_INSTANCE = BaseTag(0x00200013)


class Numbers(NamedTuple):
    """AcquisitionNumber and InstanceNumber of an image; one that it does not have sorts before all others."""

    acquisition: int = -1
    instance: int = -1


def numbers_in(head: bytes, whole: bool) -> Numbers | None:
    """The numbers of the image that begins with ``head``; None when more of it is needed to tell.

    A file that is no DICOM has none.

    Args:
        whole: There is no more of it.
    """
    behind = False

    def is_behind(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal behind
        behind = bool(tag > _INSTANCE)
        return behind

    try:
        found = read_partial(BytesIO(head), is_behind, specific_tags=[_ACQUISITION, _INSTANCE])
    except Exception as exc:  # noqa: BLE001  # whatever a file holds, it is shown and read as it is
        log.debug("no numbers in an image: %s", exc)
        return Numbers() if whole or head[PREAMBLE : PREAMBLE + len(MARK)] != MARK else None
    if not behind and not whole:
        return None  # what stands last may be cut off
    return Numbers(*(_number(found.get_item(tag).value) if tag in found else -1 for tag in (_ACQUISITION, _INSTANCE)))


def _number(value: object) -> int:
    """The number of an IS element, as it stands in the file."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    text = text.strip(" \0")
    return int(text) if text.removeprefix("+").isdecimal() and len(text) <= 12 else -1


def names_of(images: Sequence[Numbers]) -> list[str]:
    """``A-I.dcm`` for each: in the order of acquisition and instance, both counted from one by position.

    ``I`` starts again with each acquisition. Padded to the width of how often each number changes in the whole series.
    Of images with equal numbers, the first given comes first.
    """
    order = sorted(range(len(images)), key=lambda place: images[place])
    in_order = [images[place] for place in order]
    width_a = len(str(1 + sum(one.acquisition != other.acquisition for one, other in pairwise(in_order))))
    width_i = len(str(1 + sum(one.instance != other.instance for one, other in pairwise(in_order))))
    names = [""] * len(images)
    a, i, last = 0, 0, None
    for place in order:
        acquisition = images[place].acquisition
        a, i = (a, i + 1) if acquisition == last else (a + 1, 1)
        last = acquisition
        names[place] = f"{a:0{width_a}}-{i:0{width_i}}.dcm"
    return names

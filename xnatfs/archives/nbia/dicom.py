"""The one thing that a file's first bytes must tell: its SOPInstanceUID, by which NBIA gives out single files.

DICOM PS3.10, section 7: after 128 bytes and DICM come elements of group 2, explicit VR, little endian. Pure functions.
"""

from __future__ import annotations

import re
import struct

PREAMBLE = 128
MARK = b"DICM"
_LONG = frozenset({b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"OD", b"OL", b"UC", b"UR"})  # length in 4 bytes
_INSTANCE = (0x0002, 0x0003)
_UID = re.compile(rb"[0-9.]{1,64}")


def sop_instance_uid(head: bytes) -> str:
    """MediaStorageSOPInstanceUID of a file that begins with ``head``, or "" when that does not show it."""
    if head[PREAMBLE : PREAMBLE + 4] != MARK:
        return ""
    at = PREAMBLE + 4
    while at + 12 <= len(head):
        group, element, kind, length = struct.unpack_from("<2H2sH", head, at)
        at += 8
        if kind in _LONG:
            (length,) = struct.unpack_from("<I", head, at)
            at += 4
        if group != 2:
            break
        if (group, element) == _INSTANCE:
            value = head[at : at + length].rstrip(b"\0 ")
            return value.decode("ascii") if len(head) >= at + length and _UID.fullmatch(value) else ""
        at += length
    return ""

"""Mounts an XNAT imaging archive as a folder. Public names and the version, nothing else."""

from xnatfs.errors import (
    AccessDenied,
    ArchiveError,
    CorruptContent,
    LoginFailed,
    NotFound,
    StaleContent,
    TimedOut,
    Unavailable,
    XnatfsError,
)
from xnatfs.model import ContentId, Entry, Listing

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "ArchiveError",
    "ContentId",
    "CorruptContent",
    "Entry",
    "Listing",
    "LoginFailed",
    "NotFound",
    "StaleContent",
    "TimedOut",
    "Unavailable",
    "XnatfsError",
    "__version__",
]

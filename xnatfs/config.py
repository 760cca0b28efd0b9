"""Every setting, as frozen records with defaults; handed down by the factory. Read in one place: ``cli/options.py``.

Sizes are bytes, durations seconds (``_s``). Knows no file format, no environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a secret, or an anonymous visitor when ``user`` is None. The secret never shows in a repr."""

    user: str | None = None
    secret: str | None = field(default=None, repr=False)
    origin: str = "anonymous"  # where it was found, for messages and `doctor`
    is_token: bool = False  # an alias token of `xnatfs login`: it ends, and is made anew there
    session_token: str | None = field(default=None, repr=False)  # beside temporary AWS keys
    holder: str | None = None  # whose token it is


@dataclass(frozen=True, slots=True)
class HttpConfig:
    timeout_s: float = 60.0
    retries: int = 4  # further tries after the first, on refused, reset, 429 and 5xx; bounded by timeout_s as a whole
    max_connections: int = 8
    ca_bundle: Path | None = None
    proxy: str | None = field(default=None, repr=False)  # may hold a password
    session_dir: Path | None = None  # where processes of one user share one server session; None: each has its own


@dataclass(frozen=True, slots=True)
class CacheConfig:
    directory: Path | None = None  # None: memory only
    block_size: int = MIB
    limit_bytes: int = 20 * GIB
    min_free: float = 0.05  # fraction of the file system that must stay free
    memory_bytes: int = 128 * MIB


@dataclass(frozen=True, slots=True)
class ListingConfig:
    ttl_s: float = 300.0
    memory_entries: int = 120_000  # parsed entries kept; about 1 KB each with what is made of them
    offline: bool = False  # nothing is asked: what is stored is served, whatever its age
    not_before_s: float = 0.0  # since the epoch: a stored listing older than this does not count
    ahead: int = 2  # fetches that a crawl may have under way; 0: none


@dataclass(frozen=True, slots=True)
class ReadConfig:
    max_window: int = 16 * MIB  # how far one transfer may run ahead of its furthest reader
    idle_s: float = 5.0  # a transfer that nobody has wanted for this long is let go
    timeout_s: float = 60.0  # the longest a reader waits for one block without any progress
    max_transfers: int = 7  # one connection stays free for listings
    brief_transfers: int = 1  # of files of one block, beside those: a listing waits for them a moment only
    bulk: bool = True  # a walk through a folder of small files is served by one bulk stream
    max_bulk: int = 10 * GIB  # bytes of a folder up to which; about half of what the cache may take


@dataclass(frozen=True, slots=True)
class TreeConfig:
    projects: tuple[str, ...] = ()
    scan_types: tuple[str, ...] = ()  # glob patterns
    resources: tuple[str, ...] = ()  # glob patterns
    names: str = "label"  # or "id"


@dataclass(frozen=True, slots=True)
class TciaConfig:
    prefer: str = "auto"  # where images come from: "idc" (public buckets), "nbia", or "auto": IDC where it has them
    nbia_url: str = ""  # "": the server that a manifest names, else the public one
    idc_url: str = "https://s3.amazonaws.com"
    idc_index: Path | None = None  # CSV or Parquet; None: that of the package idc-index-data, where it is installed


@dataclass(frozen=True, slots=True)
class MountConfig:
    fuse: str = "auto"  # "auto", "2" or "3"
    allow_other: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int = 0o022
    attr_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Source:
    """A SOURCE argument: ``https://host[/context]`` or ``xnat://host``, with ``#/PROJECT[/SUBJECT[/SESSION]]``."""

    scheme: str
    url: str  # scheme, host, port and context path, no trailing slash, no user name or password
    inside: str = "/"  # the directory to show at the mount point


@dataclass(frozen=True, slots=True)
class Config:
    source: Source
    credentials: Credentials = field(default_factory=Credentials)
    http: HttpConfig = field(default_factory=HttpConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    listing: ListingConfig = field(default_factory=ListingConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    mount: MountConfig = field(default_factory=MountConfig)
    tcia: TciaConfig = field(default_factory=TciaConfig)

"""Reads a SOURCE: an XNAT server, a manifest, a bucket, a web tree, OpenNeuro, OSF, a data set, any URL of fsspec.

Text in, records out: nothing is asked of anybody here. Single-threaded.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from xnatfs.config import Source
from xnatfs.errors import UsageError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_DEFAULT_PORTS = {"https": 443, "http": 80}


def parse_source(text: str) -> Source:
    """Read ``https://host[/context][#/PROJECT[/SUBJECT[/SESSION]]]``; also ``http://``, ``xnat://`` and a bare host.

    The last two mean https; ``xnat+http://`` is http. Also what is no XNAT server: ``tcia://COLLECTION`` and the path
    of a ``.tcia`` manifest, ``dataset:NAME``, and any other scheme.
    What follows the ``#`` is a path in the tree, written as ``ls`` shows it (not percent-encoded).

    Raises:
        UsageError: another scheme, no host, a user or password in the URL, ``..`` in the path. Never repeats a URL
            that may hold a password.
    """
    address, _, fragment = text.partition("#")
    if address.lower().startswith("tcia:") or address.lower().endswith(".tcia"):
        return parse_tcia_source(address, fragment)
    if address.lower().startswith("dataset:") and not address[len("dataset:") :].isdigit():
        return dataset_source(address[len("dataset:") :], inside_of(fragment))
    if found := re.match(r"xnat\+(https?://)", address, re.IGNORECASE):  # as fsspec's URLs begin
        address = found[1] + address[found.end() :]
    scheme = address.partition("://")[0].lower() if "://" in address else ""
    if scheme and scheme not in ("https", "http", "xnat"):
        return parse_object_source(address, inside_of(fragment))
    if re.search(r"[\x00-\x20\x7f]", address) or not address or address[0] in "./~":
        raise UsageError(f"SOURCE {address!r} is not a server", "write https://host, or https://host#/PROJECT")
    if "://" not in address:
        address = "https://" + address
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise UsageError("SOURCE is not a URL: its host or port cannot be read", "write https://host:port") from None
    if "@" in parts.netloc:
        raise UsageError(
            "SOURCE holds a user name or password: every user of this machine could read it",
            "leave it out; use --user, ~/.netrc or XNAT_USER and XNAT_PASS",
        )
    scheme = parts.scheme.lower()
    if not parts.hostname or parts.query:
        raise UsageError(f"SOURCE {address!r} is not a server", "write https://host, or https://host#/PROJECT")
    transport = "http" if scheme == "http" else "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    suffix = "" if port in (None, _DEFAULT_PORTS[transport]) else f":{port}"
    return Source(transport, f"{transport}://{host}{suffix}{parts.path.rstrip('/')}", inside_of(fragment))


def parse_object_source(address: str, inside: str) -> Source:
    """``scheme://place[/path][?option=value]`` for every scheme that is not XNAT's.

    Raises:
        UsageError: no place, a user or password in it, ``..`` in the path. Never repeats what may be a password.
    """
    found = _SCHEME.fullmatch(address)
    if found is None:
        raise UsageError("SOURCE is not a URL", "write https://host, s3://bucket/prefix or dataset:NAME")
    scheme, rest = found[1].lower(), found[2]
    path, mark, options = rest.partition("?")
    place = path.split("/", 1)[0]
    if "@" in place or _names_a_user(options):
        raise UsageError(
            "SOURCE holds a user name or password: every user of this machine could read it",
            "leave it out; use --user and --credentials FILE, or the environment",
        )
    if not path.strip("/"):
        raise UsageError(f"SOURCE {scheme}:// names no place", f"write {scheme}://PLACE/PATH")
    if ".." in path.split("/"):
        raise UsageError(f"SOURCE goes up: {path!r}", "write the path without ..")
    return Source(scheme, f"{scheme}://{path.rstrip('/')}{mark}{options}", inside)


def _names_a_user(options: str) -> bool:
    """Whether an ``endpoint=URL`` holds a user name or a password."""
    return any("@" in urlsplit(value).netloc for name, value in parse_qsl(options) if name == "endpoint")


def parse_tcia_source(address: str, fragment: str) -> Source:
    """``tcia://[COLLECTION[/PATIENT...]]`` or the path of a ``.tcia`` manifest, each with a path behind ``#``.

    Raises:
        UsageError: ``..`` in the path within; the URL of a manifest.
    """
    if not address.lower().startswith("tcia:"):
        if _SCHEME.fullmatch(address):
            raise UsageError("SOURCE is the address of a manifest", "download it, and give the path of the file")
        return Source("tcia", str(Path(address).expanduser().absolute()), inside_of(fragment))
    path = unquote(address[len("tcia:") :].lstrip("/"))
    return Source("tcia", "tcia:", inside_of(f"{path}/{fragment}"))


def is_xnat(source: Source) -> bool:
    """Whether a source is an XNAT server, with accounts, tokens and projects."""
    return source.scheme in ("http", "https")


def dataset_source(name: str, inside: str) -> Source:
    """The source of a data set of ``xnatfs datasets``, and the path in it that was asked for.

    Raises:
        UsageError: there is none of that name, or it cannot be mounted.
    """
    from xnatfs.datasets import source_of

    source = parse_source(source_of(name))
    return replace(source, inside=f"{source.inside.rstrip('/')}{inside}" if inside != "/" else source.inside)


def inside_of(fragment: str) -> str:
    names = [name for name in fragment.split("/") if name not in ("", ".")]
    if ".." in names:
        raise UsageError(f"the path after # goes up: {fragment!r}", "write it from the top: #/PROJECT/SUBJECT")
    return "/" + "/".join(names)

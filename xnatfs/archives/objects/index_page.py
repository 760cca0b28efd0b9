"""Reads the index page that a web server makes of a directory: Apache, nginx, lighttpd, Python, rclone, Caddy and kin.

Pure functions; no requests here. What counts is where links lead, not how they are shown: a name is cut short on many
pages. A size is taken only where the page gives it in bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

from xnatfs.archives.http.numbers import whole_number
from xnatfs.errors import UnexpectedReply
from xnatfs.model import Entry

_TITLES = ("index of", "directory listing", "directory of")

_BEHIND_LINK = re.compile(
    r"\s*(\d{1,2}-\w{3}-\d{4} \d\d:\d\d(?::\d\d)?|\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?)\s+(\d+)\s*"
)
"""Date and bytes as nginx writes them, and Apache for files below a thousand bytes. "1.2K" is no size in bytes."""


@dataclass(slots=True)
class _Link:
    href: str
    behind: str = ""
    size: str = ""


class _Parser(HTMLParser):
    """Collects the links of a page, the text behind each, and what the page calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[_Link] = []
        self.title = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href") if tag == "a" else None
        if href:
            self.links.append(_Link(href))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("title", "h1", "h2"):
            self.title = self.title or data.strip()
        elif self.links and self._inside == "size":
            self.links[-1].size = data
        elif self.links and self._inside != "a":
            self.links[-1].behind += data


def entries_of(page: str, url: str, what: str) -> tuple[Entry, ...]:
    """The files and directories one step below the directory at ``url`` that its page links to.

    Keys are paths as the server wrote them, encoded; those of directories end in a slash.

    Raises:
        UnexpectedReply: no link leads below, and the page does not call itself an index either: not an empty directory.
    """
    parser = _Parser()
    parser.feed(page)
    parser.close()
    here = urlsplit(url)
    top = here.path
    found: dict[str, Entry] = {}
    for link in parser.links:
        target = _joined(url, link.href)
        if target is None or target[:2] != (here.scheme, here.netloc):
            continue
        below = _below(top, target[2])
        if below is None:
            continue
        segment, slash, rest = below.partition("/")
        name = unquote(segment, errors="surrogateescape")
        if not segment or rest or name in (".", "..") or target[2] in found:
            continue
        found[target[2]] = Entry(name, target[2], True, listing=target[2]) if slash else _file(name, target[2], link)
    if not found and not parser.title.lower().startswith(_TITLES):
        raise UnexpectedReply(f"{what}: a web page that lists no files", "open it in a browser: is it an index page?")
    return tuple(found.values())


def _below(top: str, path: str) -> str | None:
    """What of a link's path lies below a directory; None when it lies elsewhere.

    A link may write the directory's own path in another way than we asked for it: ``(`` for ``%28``.
    """
    if path.startswith(top):
        return path[len(top) :]
    segments, above = path.split("/"), top.count("/")
    if len(segments) <= above or unquote("/".join(segments[:above])) != unquote(top[:-1]):
        return None
    return "/".join(segments[above:])


def _joined(url: str, href: str) -> tuple[str, str, str] | None:
    """Scheme, host and path of a link; None for one with a query (a sort order) and one that cannot be read."""
    try:
        target = urlsplit(urljoin(url, href.strip()))
    except ValueError:
        return None
    return None if target.query else (target.scheme, target.netloc, target.path)


def _file(name: str, key: str, link: _Link) -> Entry:
    behind = _BEHIND_LINK.fullmatch(link.behind)
    if (size := whole_number(link.size)) is not None:
        return Entry(name, key, False, size, version=f"listed {link.size} {' '.join(link.behind.split())}")
    if behind is not None and (size := whole_number(behind[2])) is not None:
        return Entry(name, key, False, size, version=f"listed {behind[2]} {behind[1]}")
    return Entry(name, key, False)

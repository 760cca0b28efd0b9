"""Replies as records, before they meet faults or the wire, and the error pages that XNAT-like servers send."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field

from xnatfs.demo.sending import Body, Cut, of_bytes

LOGIN_PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>Sample archive: please log in</title></head><body>\n"
    b'<form name="form1" method="post" action="/login"><input name="username"><input name="password" type="password">'
    b"</form></body></html>\n"
)


AGREEMENT_PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>Data Use Terms</title></head><body>\n"
    b"<p>Please accept the terms of use before you access these data.</p></body></html>\n"
)


@dataclass(slots=True)
class Reply:
    """Status, headers and body of one answer.

    Attributes:
        declared: The Content-Length to claim when a fault makes it differ from the body's.
        cut: What a fault does to the body on its way out.
        dead: "reset" or "close": no answer at all.
        framed: False for a body with neither length nor chunks, which the end of the connection ends.
        ranges: Range is honoured whatever the server's switch says.
        variants: Fault kind -> the body to send in its place.
        whole: The whole file, where ``body`` has become the range that was asked for.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = field(default_factory=lambda: of_bytes(b""))
    declared: int | None = None
    cut: Cut | None = None
    dead: str = ""
    framed: bool = True
    whole: Body | None = None
    ranges: bool = False
    variants: dict[str, Callable[[], Body]] = field(default_factory=dict)


def plain(text: str | bytes, content_type: str = "text/plain", status: int = 200) -> Reply:
    data = text.encode() if isinstance(text, str) else text
    return Reply(status, {"Content-Type": content_type}, of_bytes(data))


def error(status: int, message: str) -> Reply:
    """An HTML page: never to be parsed, only its status counts."""
    head = "<head>\n   <title>Status page</title>\n</head>"
    page = f"<html>\n{head}\n<body>\n<h3>{html.escape(message)}</h3>\n</body>\n</html>\n"
    reply = plain(page, "text/html", status)
    if status == 401:
        reply.headers["WWW-Authenticate"] = 'Basic realm="Sample archive"'
    return reply


def home_page(user: str, guest: bool) -> Reply:
    name = html.escape(user)
    who = '<span style="color:red;">Guest</span>' if guest else f'&nbsp;<a href="/app/template/Profile.vm">{name}</a>'
    body = f'<span id="user_info">Logged in as: {who}</span>'
    page = f"<html><head><title>Sample archive</title></head><body>{body}</body></html>\n"
    return plain(page, "text/html")

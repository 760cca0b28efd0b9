"""A folder of links to files of another server, as an HTML page for `rclone mount :http:`. Serves no bytes.

    python benchmarks/index_server.py < LINKS        prints its URL as the first line; ends when stdin does

LINKS is one JSON object: {name: {"url": where its bytes are, "size": bytes}}. A GET of a file is a redirect, so that
rclone reads from the very server that xnatfs reads from: one more round trip on loopback for each file opened.
"""

from __future__ import annotations

import asyncio
import html
import json
import sys
import urllib.parse

from aiohttp import web

LAST_MODIFIED = "Mon, 01 Jan 2024 00:00:00 GMT"


def application(links: dict[str, dict[str, object]]) -> web.Application:
    async def index(_: web.Request) -> web.Response:
        rows = "".join(f'<a href="{urllib.parse.quote(name)}">{html.escape(name)}</a><br>' for name in links)
        return web.Response(text=f"<html><body>{rows}</body></html>", content_type="text/html")

    async def file(request: web.Request) -> web.StreamResponse:
        link = links.get(request.match_info["name"])
        if link is None:
            raise web.HTTPNotFound
        if request.method == "HEAD":
            headers = {"Content-Length": str(link["size"]), "Last-Modified": LAST_MODIFIED}
            return web.Response(headers=headers, content_type="application/octet-stream")
        raise web.HTTPTemporaryRedirect(str(link["url"]))

    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_get("/{name}", file)
    return app


async def serve() -> None:
    runner = web.AppRunner(application(json.loads(sys.stdin.readline())), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())

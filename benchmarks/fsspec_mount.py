"""`fsspec.fuse` over directory pages, in the foreground. Nothing here is timed.

    python benchmarks/fsspec_mount.py URL MOUNTPOINT USER:PASSWORD

fsspec's HTTP file system takes every address for a file, so that its FUSE mount of a page has no directories at all.
The few lines here call a name without a dot a directory; everything else is fsspec's own.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

from fsspec.fuse import run
from fsspec.implementations.http import HTTPFileSystem


class Pages(HTTPFileSystem):
    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        if "." in url.rpartition("/")[2]:
            return dict(await super()._info(url, **options))
        return {"name": url, "size": 0, "type": "directory"}


if __name__ == "__main__":
    url, point, login = sys.argv[1:]
    pages = Pages(headers={"Authorization": "Basic " + base64.b64encode(login.encode()).decode()})
    run(pages, url, point, foreground=True, threads=False)

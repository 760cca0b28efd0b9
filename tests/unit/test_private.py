"""Private directories: what is made on the way to them is private, too."""

from __future__ import annotations

import stat
from pathlib import Path

from xnatfs.private import private_directory


def test_what_is_missing_above_a_private_directory_is_made_private_too(tmp_path: Path) -> None:
    below = tmp_path / "cache" / "listings"
    private_directory(below)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (below, below.parent)] == [0o700, 0o700]

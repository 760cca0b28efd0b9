"""Private directories: what is made on the way to them is private, too."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from xnatfs.private import private_directory


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711, 0o1755])
def test_a_directory_with_something_in_it_is_not_closed_to_others(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    home.joinpath("index.html").write_text("for everybody")
    with pytest.raises(PermissionError, match="others may enter it; name a directory of its own"):
        private_directory(home)
    assert stat.S_IMODE(home.stat().st_mode) == mode
    home.joinpath("index.html").unlink()
    private_directory(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_private_directory_with_something_in_it_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    tmp_path.joinpath("x").write_text("ours")
    private_directory(tmp_path)


def test_what_is_missing_above_a_private_directory_is_made_private_too(tmp_path: Path) -> None:
    below = tmp_path / "cache" / "listings"
    private_directory(below)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (below, below.parent)] == [0o700, 0o700]

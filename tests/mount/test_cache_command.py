"""``xnatfs cache`` beside a living mount: what it says, what it repairs, and that readers notice nothing but time."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import Mount, mounted, user_environment, xnatfs
from tests.helpers.server import DemoServer

pytestmark = pytest.mark.fuse

FILE = "BIG/BIG_1/BIG_1_MR/scans/3-bold100m/NIFTI/bold_100m.nii"


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture
def mount(server: DemoServer, tmp_path: Path) -> Iterator[Mount]:
    # Little memory, so that what is read again comes from the disk.
    with mounted(server.url, tmp_path, "--memory", "1M", user="demo", password="demo") as mount:
        yield mount


def cache(mount: Mount, *words: str) -> subprocess.CompletedProcess[str]:
    environment = user_environment(mount.room / "home", None, None)
    return xnatfs("cache", *words, "--cache-dir", str(mount.cache), environment=environment)


def md5_of(path: Path) -> str:
    """By a program of its own, past the kernel's page cache of this mount."""
    command = ["dd", f"if={path}", "bs=1M", "iflag=nocache", "status=none"]
    return hashlib.md5(subprocess.run(command, check=True, capture_output=True).stdout).hexdigest()


def true_md5(server: DemoServer) -> str:
    (row,) = [row for row in server.truth("BIG", md5="all") if row["name"] == Path(FILE).name]
    return str(row["md5"])


def test_info_counts_what_a_mount_has_kept(mount: Mount) -> None:
    size = (mount.path / FILE).stat().st_size
    md5_of(mount.path / FILE)
    facts = json.loads(cache(mount, "info", "--json").stdout)
    assert facts["directory"] == str(mount.cache)
    assert facts["files"] == 1
    assert size - 16 * 1024 * 1024 <= facts["used_bytes"] <= facts["limit_bytes"]  # the last blocks are on their way
    assert "blocks of 1 files" in cache(mount, "info").stdout


def test_verify_finds_a_rotten_block_and_the_mount_serves_the_truth(server: DemoServer, mount: Mount) -> None:
    md5_of(mount.path / FILE)
    assert cache(mount, "verify").returncode == 0
    block_file = max(mount.cache.glob("??/*"), key=lambda path: path.stat().st_blocks)
    with block_file.open("r+b") as file:
        file.seek(500_000)
        file.write(b"rot")
    found = cache(mount, "verify", "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["damaged"] == 1
    mount.stop()
    mount.start()
    assert md5_of(mount.path / FILE) == true_md5(server)
    assert cache(mount, "verify").returncode == 0


def test_clear_while_a_file_is_read_costs_requests_and_no_byte(server: DemoServer, mount: Mount) -> None:
    path = mount.path / FILE
    path.stat()
    limit = time.monotonic() + 20
    while not json.loads(cache(mount, "info", "--json").stdout)["listings_bytes"]:  # stored when nobody waits for more
        assert time.monotonic() < limit, "no listing was stored"
    digest = hashlib.md5()
    with path.open("rb", buffering=0) as file:
        for number in range(10):
            digest.update(file.read(4 * 1024 * 1024))
            if number in (2, 6):
                assert cache(mount, "clear").returncode == 0
        while piece := file.read(1024 * 1024):
            digest.update(piece)
    assert digest.hexdigest() == true_md5(server)
    assert cache(mount, "verify").returncode == 0
    assert "freed" in cache(mount, "clear").stdout
    after = json.loads(cache(mount, "info", "--json").stdout)
    assert (after["blocks"], after["listings_bytes"]) == (0, 0)


def test_looking_at_a_cache_that_is_not_there_makes_none(tmp_path: Path) -> None:
    environment = user_environment(tmp_path / "home", None, None)
    nowhere = tmp_path / "nothing"
    for word in ("info", "verify", "clear"):
        assert xnatfs("cache", word, "--cache-dir", str(nowhere), environment=environment).returncode == 0
    assert not nowhere.exists()
    somebodys = tmp_path / "photos"
    (somebodys / "ab").mkdir(parents=True)
    (somebodys / "ab" / f"{'0' * 30}-100000-0").write_text("mine")
    somebodys.chmod(0o755)
    for word in ("info", "verify", "clear"):
        assert xnatfs("cache", word, "--cache-dir", str(somebodys), environment=environment).returncode == 0
    assert stat.S_IMODE(somebodys.stat().st_mode) == 0o755
    assert [path.name for path in sorted(somebodys.rglob("*"))] == ["ab", f"{'0' * 30}-100000-0"]


def test_a_cache_others_can_write_to_is_refused_with_a_reason(tmp_path: Path) -> None:
    environment = user_environment(tmp_path / "home", None, None)
    open_to_all = tmp_path / "cache"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    refused = xnatfs("cache", "verify", "--cache-dir", str(open_to_all), environment=environment)
    assert refused.returncode == 1
    assert "others may write to it" in refused.stderr
    assert "cannot be opened" in refused.stderr
    assert stat.S_IMODE(open_to_all.stat().st_mode) == 0o777

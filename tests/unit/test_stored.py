"""Listings on disk: what is put is what is got, or nothing; private, bounded, whoever else writes or kills."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.trees import run_together
from xnatfs.config import MIB, CacheConfig
from xnatfs.factory import listings_limit
from xnatfs.model import Entry, Listing
from xnatfs.tree.stored import ListingStore

ASKED_AT_S = 1_700_000_000.25

LISTING = Listing(
    "experiment:id=E1",
    {
        "/data/experiments/E1": (
            Entry("scans", "/data/experiments/E1/scans", True, mtime_ns=1, listing="experiment:id=E1", reserved=True),
            Entry("B\u00e9la \udcff/\n", "k", True, id="7", aliases=("XNAT_E1", "x"), xsi_type="xnat:mr", hidden=True),
        ),
        "/data/experiments/E1/scans": (Entry("1.dcm", "/f/1.dcm", False, 526, 10**18, "526:ab", digest="ab" * 16),),
        "/empty": (),
    },
    {"document:E1|item.json": b'{"PatientName": "Demo^Sample"}', "document:E1|\udcff": bytes(range(256))},
)


def store_in(
    directory: Path, scope: object = "demo", limit_bytes: int = 1 << 20, min_free: float = 0.0
) -> ListingStore:
    return ListingStore(directory / "listings", ("http://h", scope), limit_bytes, min_free)


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> ListingStore:
    return store_in(tmp_path)


def test_a_listing_comes_back_whole_with_its_time(store: ListingStore, tmp_path: Path) -> None:
    store.put(LISTING, ASKED_AT_S)
    for reader in (store, store_in(tmp_path)):
        assert reader.get(LISTING.id) == (replace(LISTING, documents={}), ASKED_AT_S)


def test_documents_come_back_by_key(store: ListingStore) -> None:
    store.put(LISTING, ASKED_AT_S)
    assert {key: store.document(LISTING.id, key) for key in LISTING.documents} == LISTING.documents
    assert store.document(LISTING.id, "document:other") is None
    assert store.document("other", "document:E1|item.json") is None


def test_what_was_never_put_is_not_there(store: ListingStore) -> None:
    assert store.get("site") is None
    assert not store.renew("site", ASKED_AT_S)
    store.forget("site")


def test_another_account_server_or_filter_sees_nothing_of_it(store: ListingStore, tmp_path: Path) -> None:
    store.put(LISTING, ASKED_AT_S)
    other = store_in(tmp_path, scope="another")
    assert other.get(LISTING.id) is None
    other.put(Listing(LISTING.id, {"/": ()}), ASKED_AT_S)
    assert store.get(LISTING.id) == (replace(LISTING, documents={}), ASKED_AT_S)


def test_a_later_one_takes_the_place_and_a_renewed_one_the_time(store: ListingStore, tmp_path: Path) -> None:
    store.put(LISTING, ASKED_AT_S)
    changed = Listing(LISTING.id, {"/empty": ()})
    store.put(changed, ASKED_AT_S + 1)
    assert store.renew(LISTING.id, ASKED_AT_S + 2)
    assert store.get(LISTING.id) == (changed, ASKED_AT_S + 2)
    assert len(files(tmp_path)) == 1


def test_a_forgotten_one_is_gone(store: ListingStore) -> None:
    store.put(LISTING, ASKED_AT_S)
    store.forget(LISTING.id)
    assert store.get(LISTING.id) is None


def test_everything_is_private_whatever_the_umask_and_no_name_is_in_a_file_name(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store_in(tmp_path).put(LISTING, ASKED_AT_S)
    finally:
        os.umask(before)
    top = tmp_path / "listings"
    assert {path.stat().st_mode & 0o777 for path in (top, *top.rglob("*")) if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in files(top)} == {0o600}
    assert not any("E1" in path.name for path in top.rglob("*"))


@pytest.mark.parametrize("place", ["magic", "length", "time", "entries", "end", "empty"])
def test_a_damaged_one_is_a_miss_and_one_warning_and_can_be_put_again(
    store: ListingStore, tmp_path: Path, place: str, expected_warnings: list[str]
) -> None:
    expected_warnings.append("damaged")
    for _ in range(2):
        store.put(LISTING, ASKED_AT_S)
        (file,) = files(tmp_path)
        data = bytearray(file.read_bytes())
        at = {"magic": 0, "length": 9, "time": 34, "entries": 60, "end": len(data) - 1, "empty": 0}[place]
        data[at] ^= 0x40
        file.write_bytes(b"" if place == "empty" else data)
        got = store.get(LISTING.id), store.document(LISTING.id, "document:E1|item.json")
        assert got[1] is None
        assert got[0] in (None, (replace(LISTING, documents={}), ASKED_AT_S))
        assert place == "end" or got[0] is None
    store.put(LISTING, ASKED_AT_S)
    assert store.get(LISTING.id) is not None


def test_a_truncated_one_is_a_miss_wherever_it_ends(
    store: ListingStore, tmp_path: Path, expected_warnings: list[str]
) -> None:
    expected_warnings.append("damaged")
    store.put(replace(LISTING, documents={}), ASKED_AT_S)
    (file,) = files(tmp_path)
    data = file.read_bytes()
    for end in range(0, len(data) - 40, 7):
        file.write_bytes(data[:end])
        assert store.get(LISTING.id) is None


class _Planted:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch planted",)


def test_a_planted_pickle_is_never_loaded(
    store: ListingStore, tmp_path: Path, expected_warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_warnings.append("damaged")
    monkeypatch.chdir(tmp_path)
    store.put(LISTING, ASKED_AT_S)
    (file,) = files(tmp_path)
    file.write_bytes(pickle.dumps(_Planted()))
    assert store.get(LISTING.id) is None
    assert not (tmp_path / "planted").exists()


def test_one_listing_in_the_place_of_another_is_refused(
    store: ListingStore, tmp_path: Path, expected_warnings: list[str]
) -> None:
    expected_warnings.append("belongs elsewhere")
    store.put(LISTING, ASKED_AT_S)
    (first,) = files(tmp_path)
    store.put(Listing("other", {}), ASKED_AT_S)
    (second,) = set(files(tmp_path)) - {first}
    second.write_bytes(first.read_bytes())
    assert store.get("other") is None


def long_listing(number: int) -> Listing:
    entries = tuple(Entry(os.urandom(8).hex(), os.urandom(16).hex(), False, 1) for _ in range(300))
    return Listing(f"{number}", {"/": entries})


def disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in files(directory))


def test_listings_take_a_twentieth_of_the_cap_and_512_mib_at_most() -> None:
    assert listings_limit(CacheConfig(limit_bytes=2_000_000_000)) == 100_000_000
    assert listings_limit(CacheConfig(limit_bytes=10**15)) == 512 * MIB


def test_the_limit_holds_after_every_put_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    limit_bytes = 200_000
    store = store_in(tmp_path, limit_bytes=limit_bytes)
    for number in range(30):
        store.put(long_listing(number), ASKED_AT_S)
        assert store.get("0") is not None or number > 29
        assert disk_bytes(tmp_path) <= limit_bytes
        time.sleep(0.005)  # uses are told apart by the file's time
    assert store.get("1") is None
    assert store.get("29") is not None
    assert 0 < store.used_bytes() <= limit_bytes
    store.clear()
    assert store.used_bytes() == 0


def test_what_two_stores_write_is_bounded_together(tmp_path: Path) -> None:
    limit_bytes = 400_000
    stores = [store_in(tmp_path, scope=scope, limit_bytes=limit_bytes) for scope in "ab"]
    for number in range(40):
        stores[number % 2].put(long_listing(number), ASKED_AT_S)
    assert disk_bytes(tmp_path) <= limit_bytes * 9 // 8


def test_a_limit_of_nothing_and_a_listing_over_the_limit_store_nothing(tmp_path: Path) -> None:
    for limit_bytes in (0, 4096):
        store = store_in(tmp_path, limit_bytes=limit_bytes)
        store.put(long_listing(1), ASKED_AT_S)
        assert store.get("1") is None
    assert files(tmp_path) == []


def test_a_disk_that_must_stay_free_gets_nothing_and_one_warning(
    tmp_path: Path, expected_warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_warnings.append("disk is full")
    (tmp_path / "listings").mkdir()
    store = store_in(tmp_path, min_free=1.0)
    for _ in range(2):
        store.put(LISTING, ASKED_AT_S)
    assert store.get(LISTING.id) is None
    assert len(caplog.records) == 1


def test_a_place_that_cannot_be_written_is_one_warning(
    tmp_path: Path, expected_warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_warnings.append("listings are neither stored nor read")
    (tmp_path / "listings").write_bytes(b"a file in the way")
    store = store_in(tmp_path)
    for _ in range(2):
        store.put(LISTING, ASKED_AT_S)
    assert store.document(LISTING.id, "x") is None
    assert len(caplog.records) == 1


def test_threads_that_put_and_get_one_listing_see_whole_ones(store: ListingStore) -> None:
    versions = [Listing("one", {"/": (Entry("a", str(n), False, n),) * 200}) for n in range(4)]
    store.put(versions[0], 0.0)

    def put(number: int) -> bool:
        for _ in range(50):
            store.put(versions[number], float(number))
        return True

    def get() -> bool:
        return all(store.get("one") in [(each, float(n)) for n, each in enumerate(versions)] for _ in range(50))

    assert run_together([lambda: put(1), lambda: put(2), lambda: put(3), get, get]) == [True] * 5


WRITER = """
import sys, pathlib
from xnatfs.model import Entry, Listing
from xnatfs.tree.stored import ListingStore
store = ListingStore(pathlib.Path(sys.argv[1]), ("kill",), 1 << 30)
n = 0
while True:
    n += 1
    for name in "abc":
        store.put(Listing(name, {"/": (Entry(name, str(n), False, n),) * 2000}), float(n))
    print(n, flush=True)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "listings")], stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("after", [1, 3])
def test_kill_9_in_mid_write_leaves_whole_listings(writer: subprocess.Popen[str], tmp_path: Path, after: int) -> None:
    assert writer.stdout is not None
    for _ in range(after):
        writer.stdout.readline()
    time.sleep(0.003 * after)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    store = ListingStore(tmp_path / "listings", ("kill",), 1 << 30)
    for name in "abc":
        found = store.get(name)
        assert found is not None
        assert found[0] == Listing(name, {"/": (Entry(name, str(int(found[1])), False, int(found[1])),) * 2000})
    store.put(Listing("a", {}), 0.0)
    assert store.get("a") == (Listing("a", {}), 0.0)

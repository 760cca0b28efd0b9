"""xnat:// URLs against a server: who logs in, how often, what reaches other processes. Programs run by themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.mounting import user_environment
from tests.helpers.server import DemoServer

IMAGE = "/DEMO/DEMO_001/DEMO_001_MR1/scans/1-T1w/NIFTI/anatomical.nii"
PASSWORD = "demo"

OPEN = """
import fsspec, hashlib, os, pickle, sys, threading
from concurrent.futures import ThreadPoolExecutor
import multiprocessing
url = sys.argv[1]
fs, path = fsspec.url_to_fs(url)
def digest(fs, path):
    return hashlib.md5(fs.cat_file(path)).hexdigest()
def head(fs, path):
    return hashlib.md5(fs.cat_file(path, 0, 20_000_000)).hexdigest()
"""


@pytest.fixture
def server(own_server: DemoServer) -> DemoServer:
    return own_server


@pytest.fixture
def url(server: DemoServer) -> str:
    return f"xnat+http://127.0.0.1:{server.port}{IMAGE}"


@pytest.fixture
def truth(server: DemoServer) -> str:
    (found,) = [each["md5"] for each in server.truth("DEMO") if each["uri"].endswith("anatomical.nii")]
    return str(found)


def run(
    program: str, url: str, room: Path, password: str | None = PASSWORD, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    file = room / "program.py"
    file.write_text(f"{OPEN}\nif __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in program.splitlines()))
    return subprocess.run(
        [sys.executable, str(file), url],
        env=user_environment(room / "home", "demo" if password else None, password),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def logins(server: DemoServer) -> list[str]:
    records = server.settled_log()["requests"]
    return [record["method"] for record in records if record["path"] == "/data/JSESSION"]


def test_a_url_reads_and_its_session_ends_with_the_program(
    server: DemoServer, url: str, truth: str, tmp_path: Path
) -> None:
    done = run("print(digest(fs, path))", url, tmp_path)
    assert (done.stdout, done.stderr) == (f"{truth}\n", "")
    assert (server.log()["sessions"], logins(server)[-1]) == (1, "DELETE")


def test_threads_with_instances_of_their_own_share_one_tree(
    server: DemoServer, url: str, truth: str, tmp_path: Path
) -> None:
    program = """
def own(_):
    fs, path = fsspec.url_to_fs(url)
    return fs, digest(fs, path)
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(own, range(16)))
assert len({id(fs.vfs) for fs, _ in found}) == 1
assert len({id(fs) for fs, _ in found}) > 1
print({md5 for _, md5 in found})
"""
    done = run(program, url, tmp_path)
    assert (done.stdout, done.stderr) == (f"{{'{truth}'}}\n", "")
    assert len(server.data_requests()) == 1


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_file_system_and_an_open_file_go_to_another_process(
    server: DemoServer, url: str, truth: str, tmp_path: Path, method: str
) -> None:
    program = f"""
file = fs.open(path)
file.seek(100)
with multiprocessing.get_context("{method}").Pool(2) as pool:
    print(*pool.starmap(digest, [(fs, path)] * 4))
    assert pool.apply(file.__class__.read, (file,)) == fs.cat_file(path, 100)
    pool.close()
    pool.join()
"""
    done = run(program, url, tmp_path)
    assert (done.stdout.split(), done.stderr) == ([truth] * 4, "")


def test_a_forked_child_opens_a_tree_of_its_own_and_leaves_the_parents_alone(
    server: DemoServer, url: str, truth: str, tmp_path: Path
) -> None:
    program = """
file = fs.open(path)
head = file.read(100_000)
mine = id(fs.vfs)
child = os.fork()
if child == 0:
    file.seek(0)
    assert file.read() == head
    assert id(fs.vfs) != mine
    print(digest(fs, path), flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
file.seek(0)
assert file.read() == head
assert id(fs.vfs) == mine
print(digest(fs, path), flush=True)
"""
    done = run(program.replace("import os", ""), url, tmp_path)
    assert (done.stdout.split(), "Traceback" in done.stderr) == ([truth] * 2, False), done.stderr
    assert (server.log()["sessions"], logins(server)[-1]) == (1, "DELETE")


@pytest.mark.parametrize("module", ["xnatfs.archives.xnat.archive", "xnatfs.archives.xnat.interface"])
def test_a_fork_waits_for_what_another_thread_is_importing(module: str, url: str, truth: str, tmp_path: Path) -> None:
    program = f"""
import importlib.abc, signal, threading
importing, forked = threading.Event(), threading.Event()

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *rest):
        if name == "{module}":
            importing.set()
            forked.wait(1)

sys.meta_path.insert(0, Slow())
reader = threading.Thread(target=fs.cat_file, args=(path,))
reader.start()
assert importing.wait(20)
child = os.fork()
forked.set()
if child == 0:
    signal.alarm(30)
    print(digest(fs, path), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
reader.join()
"""
    done = run(program, url, tmp_path)
    assert (done.stdout.split(), done.stderr) == ([truth], "")


def test_no_pickle_holds_a_secret(url: str, tmp_path: Path) -> None:
    program = """
file = fs.open(path)
file.read(10)
assert os.environ["XNAT_PASS"] == "demo"
for thing in (fs, file, fsspec.open(url), fs.get_mapper("/DEMO"), fs.to_json()):
    blob = pickle.dumps(thing)
    assert b"127.0.0.1" in blob
    for secret in (b"demo", b"JSESSION", b"Basic"):
        assert secret not in blob, blob
print("none")
"""
    done = run(program, url, tmp_path)
    assert (done.stdout, done.stderr) == ("none\n", "")


def test_a_wrong_password_is_a_permission_error_and_tried_once(server: DemoServer, url: str, tmp_path: Path) -> None:
    program = """
for _ in range(3):
    try:
        fs.exists(path)
    except PermissionError as exc:
        print(type(exc).__name__)
"""
    done = run(program, url, tmp_path, password="wrong")
    assert (done.stdout.split(), done.stderr) == (["LoginFailed"] * 3, "")
    refused = [record for record in server.settled_log()["requests"] if record["status"] == 401]
    assert len(refused) <= 2, refused


def test_a_server_that_is_away_is_an_error_and_not_an_absence(url: str, server: DemoServer, tmp_path: Path) -> None:
    away = url.replace(str(server.port), "9")
    program = """
fs = fsspec.filesystem("xnat", source=fs.storage_options["source"], timeout="2s")
try:
    print(fs.exists(path))
except ConnectionError as exc:
    print(type(exc).__name__)
"""
    done = run(program, away, tmp_path)
    assert (done.stdout, done.stderr) == ("Unreachable\n", "")


def test_a_header_costs_about_a_megabyte_of_a_gigabyte(server: DemoServer, tmp_path: Path) -> None:
    url = f"xnat+http://127.0.0.1:{server.port}/BIG/BIG_1/BIG_1_MR/scans/1-bold1g/NIFTI/bold_1g.nii"
    done = run("print(len(fs.open(path).read(352)))", url, tmp_path)
    assert (done.stdout, done.stderr) == ("352\n", "")
    assert sum(record["sent"] for record in server.data_requests()) <= 1_500_000


def test_four_processes_fetch_one_cold_file_once_in_one_session(server: DemoServer, tmp_path: Path) -> None:
    url = f"xnat+http://127.0.0.1:{server.port}/BIG/BIG_1/BIG_1_MR/scans/1-bold1g/NIFTI/bold_1g.nii"
    server.switch(bandwidth=40_000_000)
    program = """
fs.info(path)
with multiprocessing.get_context("spawn").Pool(4) as pool:
    print(*set(pool.starmap(head, [(fs, path)] * 4, chunksize=1)))
    pool.close()
    pool.join()
"""
    done = run(program, url, tmp_path)
    assert (len(done.stdout.split()), done.stderr) == (1, "")
    assert len(server.data_requests()) == 1
    assert server.log()["sessions"] == 1

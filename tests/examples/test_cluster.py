"""A Dask cluster of several machines: a scheduler and two nodes, each a network namespace with its own address."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.helpers.mounting import user_environment
from tests.helpers.networks import Machine, Network, private_network, why_no_networks
from tests.helpers.server import DemoServer
from tests.helpers.truth import tree_path

EXAMPLES = Path(__file__).parents[2] / "examples"
WORKERS = 2  # processes of each node
READY_S = 60.0

ON_EVERY_WORKER = """
import json, runpy, sys
import fsspec
from dask.distributed import Client
project, scheduler = sys.argv[1:]
mean_of = runpy.run_path(EXAMPLE)["mean_of"]
def all_means(files):
    return [mean_of(file) for file in files]
if __name__ == "__main__":
    files = fsspec.open_files([f"{project}/**/*.nii", f"{project}/**/*.nii.gz"])
    with Client(scheduler) as client:
        client.wait_for_workers(4)
        print(json.dumps(client.run(all_means, files)))
"""


@dataclass
class Cluster:
    network: Network
    server: DemoServer
    scheduler: str
    nodes: list[Machine]
    environment: dict[str, str]  # of whoever hands in work

    @property
    def project(self) -> str:
        return f"xnat+http://{self.server.host}:{self.server.port}/DEMO"

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        return done.stdout

    def fetched(self) -> dict[str, Counter[str]]:
        """Files asked for, how often, by address of who asked."""
        found: dict[str, Counter[str]] = {}
        for record in self.server.data_requests():
            found.setdefault(record["peer"], Counter())[record["path"]] += 1
        return found


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    reason = why_no_networks()
    if reason:
        pytest.skip(reason)
    with private_network(3) as network:
        yield network


@contextlib.contextmanager
def running(machine: Machine, log: Path, environment: dict[str, str], *words: str) -> Iterator[None]:
    command = [*machine.enter, sys.executable, "-m", "dask", *words]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def cluster_on(network: Network, room: Path, shared_home: bool) -> Iterator[Cluster]:
    """Each machine has its own cache directory, and its own home or the one that all share."""

    def environment(machine: str) -> dict[str, str]:
        extra = {"XNATFS_CACHE_DIR": str(room / f"cache-{machine}"), "TMPDIR": str(room)}
        return user_environment(room / ("home" if shared_home else f"home-{machine}"), "demo", "demo", extra)

    boss, *nodes = network.machines
    scheduler = f"tcp://{boss.address}:8786"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(DemoServer(host=network.address, latency="10ms"))
        quiet = ["--no-dashboard", "--host"]
        log = room / "scheduler.log"
        stack.enter_context(running(boss, log, environment("boss"), "scheduler", *quiet, boss.address))
        wait_for(log, "Scheduler at")
        for node in nodes:
            for number in range(WORKERS):
                words = ["worker", scheduler, "--no-nanny", "--nthreads", "1", *quiet, node.address]
                words += ["--local-directory", str(room / f"dask-{node.name}-{number}")]
                stack.enter_context(running(node, room / f"{node.name}-{number}.log", environment(node.name), *words))
        yield Cluster(network, server, scheduler, nodes, environment("desk"))


def wait_for(log: Path, text: str) -> None:
    limit = time.monotonic() + READY_S
    while text not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < limit, log.read_text(encoding="utf-8")
        time.sleep(0.05)


def true_means(server: DemoServer) -> dict[str, float]:
    """Of every image of the project, by the name of its file, from its bytes."""
    means = {}
    for row in server.truth("DEMO"):
        if row["path"].endswith((".nii", ".nii.gz")):
            data = server.content(row["uri"])
            data = gzip.decompress(data) if row["path"].endswith(".gz") else data
            kind = nib.Nifti2Image if b"\x1c\x02" in (data[:2], data[1::-1]) else nib.Nifti1Image
            means[f"/DEMO/{tree_path(row)}"] = float(np.asarray(kind.from_stream(io.BytesIO(data)).dataobj).mean())
    server.clear_log()
    return means


@pytest.mark.parametrize("shared_home", [False, True], ids=["own homes", "one home"])
def test_each_node_fetches_each_image_once_however_many_workers_read_it(
    network: Network, tmp_path: Path, shared_home: bool
) -> None:
    with cluster_on(network, tmp_path, shared_home) as cluster:
        truth = true_means(cluster.server)
        assert len(truth) >= 4
        program = tmp_path / "program.py"
        example = str(EXAMPLES / "dask_nifti_means.py")
        program.write_text(ON_EVERY_WORKER.replace("EXAMPLE", repr(example)), encoding="utf-8")
        found = json.loads(cluster.run(program, cluster.project, cluster.scheduler))
        assert len(found) == 2 * WORKERS
        for means in found.values():
            assert dict(means) == pytest.approx(truth, nan_ok=True)
        fetched = cluster.fetched()
        assert sorted(fetched) == sorted(node.address for node in cluster.nodes)
        for paths in fetched.values():
            assert len(paths) == len(truth)
            assert set(paths.values()) == {1}, "a node has fetched an image twice"
        assert cluster.server.log()["sessions"] == (1 if shared_home else 3)  # both nodes, and whoever listed the files


def test_the_example_runs_on_a_scheduler(network: Network, tmp_path: Path) -> None:
    with cluster_on(network, tmp_path, shared_home=True) as cluster:
        truth = true_means(cluster.server)
        shown = cluster.run(EXAMPLES / "dask_nifti_means.py", cluster.project, cluster.scheduler)
        lines = [line.split(maxsplit=1) for line in shown.splitlines()]
        assert {path: float(mean) for mean, path in lines} == pytest.approx(truth, abs=0.0005, nan_ok=True)
        fetched = cluster.fetched()
        assert sorted(path for paths in fetched.values() for path in paths.elements()) == sorted(
            {path for paths in fetched.values() for path in paths}
        )
        assert cluster.server.log()["sessions"] == 1

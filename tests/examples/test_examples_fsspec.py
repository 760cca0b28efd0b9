"""Examples without a mount, and the batch script, as a researcher runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.mounting import mount_points, user_environment
from tests.helpers.server import DemoServer

EXAMPLES = Path(__file__).parents[2] / "examples"
README = EXAMPLES.parent / "README.md"


@pytest.fixture
def server(own_server: DemoServer) -> DemoServer:
    return own_server


def run(*command: str | Path, room: Path, extra: dict[str, str] | None = None) -> str:
    program = room / "bin" / "xnatfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m xnatfs "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = user_environment(room / "home", "demo", "demo", extra or {})
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    environment["TMPDIR"] = str(room)
    done = subprocess.run(
        [str(word) for word in command],
        cwd=room,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def project(server: DemoServer) -> str:
    return f"xnat+http://127.0.0.1:{server.port}/DEMO"


def test_pandas_and_nibabel_read_urls(server: DemoServer, tmp_path: Path) -> None:
    shown = run(sys.executable, EXAMPLES / "fsspec_pandas.py", project(server), room=tmp_path)
    assert shown.startswith("2 subjects: DEMO_001, DEMO_002\n")
    assert "1-T1w/NIFTI/anatomical.nii: (33, 41, 25), 68002 bytes" in shown


def test_a_header_of_a_gigabyte_costs_about_a_megabyte(server: DemoServer, tmp_path: Path) -> None:
    shown = run(sys.executable, EXAMPLES / "fsspec_pandas.py", project(server).replace("DEMO", "BIG"), room=tmp_path)
    assert "bold_1g.nii: (" in shown
    assert sum(record["sent"] for record in server.data_requests()) <= 1_500_000 * len(server.data_requests())


def test_dask_workers_fetch_each_image_once_in_one_session(server: DemoServer, tmp_path: Path) -> None:
    shown = run(sys.executable, EXAMPLES / "dask_nifti_means.py", project(server), "3", room=tmp_path)
    wanted = [each for each in server.truth("DEMO") if each["path"].endswith((".nii", ".nii.gz"))]
    assert len(shown.splitlines()) == len(wanted) >= 4
    assert re.search(r"^ +\d+\.\d{3}  /DEMO/DEMO_001/.*anatomical.nii$", shown, re.M)
    fetched = [record["path"] for record in server.data_requests()]
    assert sorted(fetched) == sorted(set(fetched)), "an image was fetched twice"
    assert server.log()["sessions"] == 1


def test_the_batch_script_is_sound_and_runs_without_its_scheduler(server: DemoServer, tmp_path: Path) -> None:
    script = EXAMPLES / "slurm_array.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    assert all(
        re.match(r"#SBATCH --[a-z-]+=\S+$", line) for line in script.read_text().splitlines() if "#SBATCH" in line
    )


@pytest.mark.fuse
def test_a_task_of_the_batch_script_gets_its_subject(server: DemoServer, tmp_path: Path) -> None:
    extra = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_TMPDIR": str(tmp_path)}  # no USER, as with sbatch --export=NONE
    shown = run(EXAMPLES / "slurm_array.sbatch", server.url, "DEMO", "ls", room=tmp_path, extra=extra)
    assert "DEMO_002_MR1" in shown.split()
    assert [path for path in mount_points() if path.startswith(str(tmp_path))] == []


def test_the_readmes_lines_of_python_run(server: DemoServer, tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(import fsspec.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    text = block.replace("xnat://xnat.example.org", f"xnat+http://127.0.0.1:{server.port}")
    text = text.replace("https://xnat.example.org", server.url).replace("PROJECT", "DEMO").replace("...", "print(path)")
    file = tmp_path / "readme.py"
    file.write_text(text, encoding="utf-8")
    shown = run(sys.executable, file, room=tmp_path)
    assert "/DEMO/DEMO_001/DEMO_001_MR1/scans/1-T1w/NIFTI/anatomical.nii" in shown.splitlines()


@pytest.mark.fuse
def test_the_readmes_command_on_a_cluster_runs(server: DemoServer, tmp_path: Path) -> None:
    (section,) = re.findall(r"^### On a cluster\n(.*?)^### ", README.read_text(encoding="utf-8"), re.DOTALL | re.M)
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    command = block.replace("https://xnat.example.org", server.url).replace("PROJECT", "DEMO")
    assert run("bash", "-ec", command, room=tmp_path).split() == ["DEMO_001", "DEMO_002", "experiments.csv"]

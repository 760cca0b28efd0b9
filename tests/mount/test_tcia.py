"""A TCIA manifest and a collection as folders: what programs see, what travels for it, and the same without FUSE."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pydicom
import pytest

from tests.helpers.mounting import mounted, user_environment, xnatfs
from tests.helpers.server import DemoServer

pytestmark = [pytest.mark.fuse, pytest.mark.tools]

LUNG = "Demo Lung/DL-0001/01-31-2000-NA-CT CHEST WO  CONTRAST-10001"
SLICES = f"{LUNG}/2.000000-Axial 2.5mm lung-20001"
SLICES_UID = "1.2.826.0.1.3680043.8.498.77.9.20001"
LIMITED_UID = "1.2.826.0.1.3680043.8.498.77.9.20010"


@pytest.fixture
def server(own_server: DemoServer) -> DemoServer:
    return own_server


@pytest.fixture
def manifest(server: DemoServer, tmp_path: Path) -> Path:
    path = tmp_path / "manifest-1704103200000.tcia"
    path.write_bytes(server.fetch("/demo.tcia"))
    server.clear_log()
    return path


def asked(server: DemoServer) -> list[str]:
    return [record["path"].rpartition("/")[2] for record in server.settled_log()["requests"]]


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def found_below(top: Path) -> dict[tuple[str, str], str]:
    """(series directory's last digits, file) -> MD5 of every image of a tree."""
    images = list(top.rglob("*.dcm"))
    return {(path.parent.name.rpartition("-")[2], path.name): md5_of(path) for path in images}


def truth_of(server: DemoServer) -> dict[tuple[str, str], str]:
    return {(row["series"][-5:], row["name"]): row["md5"] for row in server.tcia_truth() if not row["limited"]}


def test_a_manifest_is_the_tree_of_the_data_retriever_byte_for_byte_and_each_series_travels_once(
    server: DemoServer, manifest: Path, tmp_path: Path
) -> None:
    truth = truth_of(server)
    several = {row["series"] for row in server.tcia_truth() if row["name"] != "1-1.dcm" and not row["limited"]}
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia") as mount:
        assert sorted(os.listdir(mount.path)) == ["DEMO_IDC", "Demo Lung", "metadata.csv", "unavailable"]
        assert sorted(os.listdir(mount.path / LUNG)) == [
            "1000.000000-QIN CT challenge alg01 run1-20002",
            "2.000000-Axial 2.5mm lung-20001",
            "NA-20003",
        ]
        assert found_below(mount.path) == truth
        requests = asked(server)
        assert requests.count("getImage") == len(several) + 1  # the series with one file is read, not listed
        assert set(requests) == {"getSeriesMetadata", "getImage"}
    server.clear_log()
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia") as mount:
        assert found_below(mount.path) == truth
    assert asked(server) == []


def test_what_was_listed_and_read_once_is_there_offline(server: DemoServer, manifest: Path, tmp_path: Path) -> None:
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia") as mount:
        first = found_below(mount.path / "Demo Lung")
    server.clear_log()
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia", "--offline") as mount:
        assert found_below(mount.path / "Demo Lung") == first
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(next((mount.path / "DEMO_IDC/IDC-0001").iterdir()).joinpath("1.000000-in both-20006"))
    assert asked(server) == []


def test_a_series_that_is_not_given_is_permission_denied_and_the_rest_goes_on(
    server: DemoServer, manifest: Path, tmp_path: Path
) -> None:
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia") as mount:
        with pytest.raises(OSError) as caught:
            os.listdir(mount.path / "unavailable" / LIMITED_UID)
        assert caught.value.errno == errno.EACCES
        assert len(os.listdir(mount.path / SLICES)) == 12


def test_idc_comes_first_where_it_has_a_series_and_a_header_costs_a_part_of_its_file(
    server: DemoServer, manifest: Path, tmp_path: Path
) -> None:
    index = tmp_path / "idc-index.csv"
    index.write_bytes(server.fetch("/idc-index.csv"))
    large = "DEMO_IDC/IDC-0001/06-01-2010-1-IN THE CLOUD-10001/4.000000-large in both-20009"
    with mounted(str(manifest), tmp_path / "room", "--idc-index", str(index), "--idc-url", server.url) as mount:
        folder = mount.path / large
        sizes = {row["size"] for row in server.tcia_truth() if row["series"].endswith("20009")}
        assert {path.stat().st_size for path in folder.iterdir()} == sizes
        server.clear_log()
        header = pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True)
        assert header.PatientID == "IDC-0001"
        sent = sum(record["sent"] for record in server.settled_log()["requests"])
        assert 0 < sent <= 512 * 1024
        digests = {row["md5"] for row in server.tcia_truth() if row["series"].endswith("20009")}
        assert {md5_of(path) for path in folder.iterdir()} == digests
    assert "getImage" not in asked(server)


def test_a_collection_mounts_by_its_name_and_its_uids_resolve(server: DemoServer, tmp_path: Path) -> None:
    with mounted("tcia://Demo Lung", tmp_path / "room", "--nbia-url", server.url, "--from", "nbia") as mount:
        assert sorted(os.listdir(mount.path)) == ["DL-0001", "DL_0002", "LICENSE", "metadata.csv"]
        study = "1.2.826.0.1.3680043.8.498.77.1.10001"
        by_uid = sorted(os.listdir(mount.path / "DL-0001" / study / SLICES_UID))
        assert by_uid == [f"1-{number:02}.dcm" for number in range(1, 13)]


def test_classic_names_are_the_uids(server: DemoServer, manifest: Path, tmp_path: Path) -> None:
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia", "--names", "id") as mount:
        studies = sorted(path.name for path in (mount.path / "Demo Lung" / "DL-0001").iterdir())
        assert studies == [f"1.2.826.0.1.3680043.8.498.77.1.{number}" for number in (10001, 10002)]


def test_pydicom_reads_a_series_in_the_order_of_its_names(server: DemoServer, manifest: Path, tmp_path: Path) -> None:
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia") as mount:
        slices = [pydicom.dcmread(path) for path in sorted((mount.path / SLICES).iterdir())]
    assert [int(one.InstanceNumber) for one in slices] == list(range(1, 13))
    assert {one.SeriesInstanceUID for one in slices} == {SLICES_UID}
    assert {one.pixel_array.shape for one in slices} == {(128, 128)}


def test_dcm2niix_converts_a_series_from_the_mount(server: DemoServer, manifest: Path, tmp_path: Path) -> None:
    import nibabel

    out = tmp_path / "out"
    out.mkdir()
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia") as mount:
        command = ["dcm2niix", "-f", "scan", "-o", str(out), str(mount.path / SLICES)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [image] = out.glob("*.nii")
    assert nibabel.load(image).shape == (128, 128, 12)


def test_cp_of_a_patient_brings_every_byte(server: DemoServer, manifest: Path, tmp_path: Path) -> None:
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia") as mount:
        subprocess.run(["cp", "-r", mount.path / "Demo Lung" / "DL-0001", tmp_path / "copy"], check=True, timeout=60)
        assert found_below(tmp_path / "copy") == found_below(mount.path / "Demo Lung" / "DL-0001")
    expected = {key: md5 for key, md5 in truth_of(server).items() if key[0] in ("20001", "20002", "20003", "20004")}
    assert found_below(tmp_path / "copy") == expected


def test_a_fault_in_mid_stream_leaves_no_trace(server: DemoServer, manifest: Path, tmp_path: Path) -> None:
    server.fault("/getImage", "reset", at=60_000)
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia") as mount:
        digests = {path.name: md5_of(path) for path in (mount.path / SLICES).iterdir()}
    assert digests == {row["name"]: row["md5"] for row in server.tcia_truth() if row["series"] == SLICES_UID}
    assert asked(server).count("getImage") == 2


def test_a_series_that_stays_short_is_an_error_and_never_a_short_folder(
    server: DemoServer, manifest: Path, tmp_path: Path
) -> None:
    server.fault("/getImage", "missing_member", times=None)
    with mounted(str(manifest), tmp_path / "room", "--from", "nbia") as mount:
        with pytest.raises(OSError) as caught:
            os.listdir(mount.path / SLICES)
        assert caught.value.errno == errno.EIO
        status = xnatfs(
            "status", "--json", mount.path, environment=user_environment(tmp_path / "room" / "home", None, None)
        )
    assert "11 of 12 files came after 5 tries" in json.dumps(json.loads(status.stdout))


# --- without FUSE -----------------------------------------------------------------------------------------------------


def command(mount_room: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    cache = ["--cache-dir", str(mount_room / "cache")]
    return xnatfs(*arguments, *cache, environment=user_environment(mount_room / "home", None, None))


def test_ls_stat_and_cat_show_the_same_and_share_the_cache(server: DemoServer, manifest: Path, tmp_path: Path) -> None:
    source = f"{manifest}#/{SLICES}"
    listed = command(tmp_path, "ls", "--from", "nbia", source)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.splitlines() == [f"1-{number:02}.dcm" for number in range(1, 13)]
    server.clear_log()
    facts = json.loads(command(tmp_path, "stat", "--from", "nbia", "--json", f"{source}/1-03.dcm").stdout)
    [row] = [row for row in server.tcia_truth() if (row["series"], row["name"]) == (SLICES_UID, "1-03.dcm")]
    assert (facts["size"], facts["digest"], facts["id"]) == (row["size"], row["md5"], row["sop"])
    shown = command(tmp_path, "cat", "--from", "nbia", f"{manifest}#/metadata.csv")
    assert shown.stdout.startswith("Series UID,Collection,3rd Party Analysis,")
    assert "getImage" not in asked(server)


def test_a_collection_lists_by_its_name(server: DemoServer, tmp_path: Path) -> None:
    listed = command(tmp_path, "ls", "--nbia-url", server.url, "tcia://")
    assert listed.stdout.splitlines() == ["DEMO_IDC", "Demo Lung"]
    listed = command(tmp_path, "ls", "--nbia-url", server.url, "tcia://Demo%20Lung/DL-0001")
    assert [line[:10] for line in listed.stdout.splitlines()] == ["01-31-2000", "12-05-2001"]


def test_what_cannot_be_mounted_says_why_in_a_line_and_an_exit_code(server: DemoServer, tmp_path: Path) -> None:
    path = tmp_path / "some.tcia"
    path.write_text("temp")
    done = command(tmp_path, "ls", str(path))
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"xnatfs: {path}: not a TCIA manifest")
    done = command(tmp_path, "ls", str(tmp_path / "none.tcia"))
    assert (done.returncode, "No such file" in done.stderr) == (2, True)
    done = command(tmp_path, "ls", "--nbia-url", server.url, "tcia://No Such Collection")
    assert (done.returncode, "no such file or directory" in done.stderr) == (1, True)


def test_passwords_for_xnat_are_not_asked_for_and_not_sent(server: DemoServer, tmp_path: Path) -> None:
    environment = user_environment(tmp_path / "home", "demo", "demo")
    done = xnatfs("ls", "--nbia-url", server.url, "tcia://", environment=environment)
    assert done.returncode == 0
    assert {record["user"] for record in server.settled_log()["requests"]} == {""}
    assert "token" not in asked(server)


def test_a_stored_login_of_the_nbia_server_opens_what_is_limited(server: DemoServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    netrc = home / ".netrc"
    netrc.write_text("machine 127.0.0.1 login demo password demo\n")
    netrc.chmod(0o600)
    arguments = ["ls", "--nbia-url", server.url, "--user", "demo", "tcia://"]
    done = xnatfs(*arguments, environment=user_environment(home, None, None))
    assert (done.returncode, done.stdout.splitlines()) == (0, ["DEMO_IDC", "Demo Lung", "Demo-Limited"])
    assert asked(server).count("token") == 1

"""From `xnatfs mount` to the last process's end: ready or one clear line, clean unmounts, nothing left behind.

Commands run as users run them, against the demo server; signals also over a tree in memory, which can be made to hang.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounting import detach, is_mounted, mounted, processes_naming, user_environment, xnatfs
from tests.helpers.server import DemoServer
from tests.mount.conftest import MountFake, OrdinaryUser
from xnatfs.cli import daemon
from xnatfs.errors import FuseError
from xnatfs.frontends import fuse_binding, mountpoint

pytestmark = pytest.mark.fuse

FILE = "DEMO/DEMO_001/DEMO_001_MR1/scans/1-T1w/DICOM/T1w-0001.dcm"


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer() as running:
        yield running


class Room:
    """Home, cache and mount point of one user, and the commands run there."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.mnt = path / "mnt"
        self.source = source
        self.environment = user_environment(path / "home", "demo", "demo")

    def mount(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        options = ["--cache-dir", str(self.path / "cache"), "--timeout", "5s", *arguments]
        return xnatfs("mount", *options, self.source, self.mnt, environment=self.environment)

    def umount(self) -> subprocess.CompletedProcess[str]:
        return xnatfs("umount", self.mnt, environment=self.environment)

    def daemon(self) -> int:
        (pid,) = processes_naming(self.mnt)
        return pid

    def assert_left(self) -> None:
        assert not is_mounted(self.mnt)
        assert processes_naming(self.path) == []


@pytest.fixture
def room(tmp_path: Path, server: DemoServer) -> Iterator[Room]:
    room = Room(tmp_path, server.url)
    room.mnt.mkdir()
    yield room
    if is_mounted(room.mnt):
        detach(room.mnt)
    for pid in processes_naming(room.path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def in_two_lines(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    assert done.stdout == ""
    line, hint = done.stderr.splitlines()
    assert line.startswith("xnatfs: ") and hint.startswith("hint: ")
    return line, hint


def wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


# --- mount and umount -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["2", "3"])
def test_mount_returns_when_the_mount_can_be_used_and_umount_when_all_is_over(room: Room, binding: str) -> None:
    done = room.mount("--fuse", binding)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "DEMO" in os.listdir(room.mnt)
    content = (room.mnt / FILE).read_bytes()
    assert room.umount().returncode == 0
    room.assert_left()
    assert os.listdir(room.mnt) == []
    assert room.mount("--fuse", binding).returncode == 0
    assert (room.mnt / FILE).read_bytes() == content
    assert room.umount().returncode == 0
    room.assert_left()


def test_the_daemon_has_let_go_of_terminal_directory_and_files(room: Room) -> None:
    held, kept = os.pipe()
    os.set_inheritable(kept, True)
    try:
        command = [sys.executable, "-m", "xnatfs", "mount", "--cache-dir", str(room.path / "cache"), room.source]
        subprocess.run([*command, str(room.mnt)], env=room.environment, pass_fds=[kept], check=True)
        os.close(kept)
        assert os.read(held, 1) == b""  # the end of the file: no one else has the other end
    finally:
        os.close(held)
    process = Path(f"/proc/{room.daemon()}")
    assert os.readlink(process / "cwd") == "/"
    assert [os.readlink(process / "fd" / number) for number in "012"] == ["/dev/null"] * 3
    assert os.getsid(int(process.name)) == int(process.name) != os.getsid(0)
    assert room.umount().returncode == 0


def test_the_password_is_in_no_command_line_and_no_child_environment(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.environment["XNAT_PASS"] = "demo"
    assert room.mount().returncode == 0
    arguments = Path(f"/proc/{room.daemon()}/cmdline").read_bytes().split(b"\0")
    assert b"demo" not in arguments
    assert room.umount().returncode == 0
    for name in ("XNAT_PASS", "XNATPY_PASSWORD", "XNAT_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "s3cret")
    daemon.forget_secrets()
    assert "s3cret" not in subprocess.run(["env"], capture_output=True, text=True, check=True).stdout


def test_the_log_file_gets_what_the_daemon_says_and_is_private(room: Room) -> None:
    log = room.path / "xnatfs.log"
    assert room.mount("-v", "--log-file", str(log)).returncode == 0
    os.kill(room.daemon(), signal.SIGTERM)
    wait_until_gone(room.daemon())
    assert "unmounting" in log.read_text(encoding="utf-8")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_umount_of_what_is_not_mounted_is_1(room: Room) -> None:
    done = room.umount()
    assert done.returncode == 1
    assert done.stderr == f"xnatfs: umount {room.mnt}: nothing is mounted there\n"


def test_umount_leaves_the_mounts_of_others_alone(room: Room) -> None:
    done = xnatfs("umount", "/proc", environment=room.environment)
    assert done.returncode == 1
    assert "not of xnatfs" in done.stderr
    assert Path("/proc/self").exists()


def test_umount_of_a_dead_mount_takes_it_away(room: Room) -> None:
    assert room.mount().returncode == 0
    pid = room.daemon()
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    done = room.umount()
    assert (done.returncode, done.stderr) == (0, "")
    room.assert_left()


@pytest.mark.parametrize("use", ["directory", "file", "mapping"])
def test_umount_names_who_uses_the_mount(room: Room, use: str) -> None:
    assert room.mount().returncode == 0
    programs = {
        "directory": "import os, sys, time; os.chdir(os.path.dirname(sys.argv[1]))",
        "file": "import sys, time; file = open(sys.argv[1])",
        "mapping": "import mmap, os, sys, time; fd = os.open(sys.argv[1], 0); "
        "kept = mmap.mmap(fd, 0, prot=mmap.PROT_READ); os.close(fd)",
    }
    program = f"{programs[use]}; print(flush=True); time.sleep(60)"
    user = subprocess.Popen([sys.executable, "-c", program, str(room.mnt / FILE)], stdout=subprocess.PIPE)
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == b"\n"
        done = room.umount()
        line, _ = in_two_lines(done)
        assert done.returncode == 1
        assert f"({user.pid})" in line and "python" in line
        assert (room.mnt / FILE).exists()
    finally:
        user.kill()
        user.communicate()
    assert room.umount().returncode == 0
    room.assert_left()


def test_a_mount_point_given_relative_or_through_a_link_is_the_same(room: Room) -> None:
    link = room.path / "link"
    link.symlink_to(room.mnt, target_is_directory=True)
    command = [sys.executable, "-m", "xnatfs", "mount", "--cache-dir", str(room.path / "cache"), room.source, "link"]
    subprocess.run(command, env=room.environment, cwd=room.path, check=True, capture_output=True)
    assert is_mounted(room.mnt)
    command = [sys.executable, "-m", "xnatfs", "umount", "./link"]
    subprocess.run(command, env=room.environment, cwd=room.path, check=True)
    room.assert_left()


# --- mounts that must not be ------------------------------------------------------------------------------------------


def test_a_caller_without_standard_streams_mounts_and_unmounts(room: Room) -> None:
    command = [sys.executable, "-m", "xnatfs", "mount", "--cache-dir", str(room.path / "cache"), room.source]
    for arguments in (["mount", *command[4:], str(room.mnt)], ["umount", str(room.mnt)]):
        words = shlex.join([*command[:3], *arguments])
        script = f"exec {words} <&- >&- 2>&-"
        assert subprocess.run(["sh", "-c", script], env=room.environment, timeout=60, check=False).returncode == 0
        assert is_mounted(room.mnt) == (arguments[0] == "mount")
    room.assert_left()


def test_mount8_mounts_by_its_helper_with_the_options_of_fstab(room: Room) -> None:
    room.path.joinpath("key").write_text("demo\ndemo\n")
    room.path.joinpath("key").chmod(0o600)
    helper = room.path / "mount.xnatfs"
    helper.write_text(f"#!{sys.executable}\nimport sys; from xnatfs.cli.main import main; sys.exit(main())\n")
    helper.chmod(0o700)
    options = f"rw,dev,suid,names=id,credentials={room.path / 'key'},cache_dir={room.path / 'cache'}"
    command = [helper, f"{room.source}#/DEMO", room.mnt, "-o", options]
    environment = {name: value for name, value in room.environment.items() if not name.startswith("XNAT")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (room.mnt / "XNAT_S00001").is_dir()
    assert room.umount().returncode == 0
    room.assert_left()


def test_a_mount_point_with_something_in_it_is_refused(room: Room) -> None:
    (room.mnt / "thesis.tex").touch()
    done = room.mount()
    line, _ = in_two_lines(done)
    assert done.returncode == 5
    assert line == f"xnatfs: mount {room.mnt}: the directory is not empty"
    room.assert_left()


def test_a_mount_point_above_the_cache_is_refused(room: Room) -> None:
    link = room.path / "link"
    link.symlink_to(room.mnt, target_is_directory=True)
    for place in (room.mnt, room.mnt / "cache", link / "a" / "b"):
        done = room.mount("--cache-dir", str(place))
        first, hint = in_two_lines(done)
        assert done.returncode == 2
        assert first == f"xnatfs: mount {room.mnt}: the cache directory {place} would lie below it"
        assert hint == "hint: name another: --cache-dir DIR"
        room.assert_left()


def test_a_mount_point_in_use_is_refused_with_what_is_there(room: Room, server: DemoServer) -> None:
    assert room.mount().returncode == 0
    done = room.mount()
    line, hint = in_two_lines(done)
    assert done.returncode == 5
    assert server.url in line and "already" in line
    assert hint == f"hint: xnatfs umount {room.mnt}"
    assert room.umount().returncode == 0


def test_a_directory_that_is_not_there_is_named_with_the_way_to_make_it(room: Room) -> None:
    room.mnt.rmdir()
    done = room.mount()
    line, hint = in_two_lines(done)
    assert done.returncode == 5
    assert str(room.mnt) in line and hint == f"hint: make it: mkdir -p {room.mnt}"


def test_a_project_that_is_not_there_is_refused_before_there_is_a_mount(room: Room) -> None:
    room.source += "#/NO_SUCH_PROJECT"
    done = room.mount()
    assert done.returncode == 1
    assert "NO_SUCH_PROJECT" in done.stderr.splitlines()[0]
    room.assert_left()


def test_no_libfuse_is_5_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_binding, "SONAMES", {3: ("libnothing.so.3",), 2: ("libnothing.so.2",)})
    for choice in ("auto", "2", "3"):
        with pytest.raises(FuseError) as raised:
            fuse_binding.load(choice)
        assert raised.value.exit_code == 5
        assert "libfuse" in str(raised.value) and "apt install" in raised.value.hint


def test_no_dev_fuse_is_5_with_a_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mountpoint, "DEVICE", tmp_path / "fuse")
    with pytest.raises(FuseError, match="there is no") as raised:
        mountpoint.prepare(tmp_path, allow_other=False)
    assert raised.value.exit_code == 5
    assert "modprobe fuse" in raised.value.hint


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["2", "3"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_unmounts_cleanly_even_with_a_file_open(mount_fake: MountFake, binding: str, number: int) -> None:
    mount = mount_fake("--fuse", binding)
    descriptor = os.open(mount.path / "readme.txt", os.O_RDONLY)
    assert mount.stop(number) == 0
    assert not is_mounted(mount.path)
    with contextlib.suppress(OSError):  # ENOTCONN: the file system is gone
        os.close(descriptor)


@pytest.mark.parametrize("binding", ["2", "3"])
def test_a_signal_ends_reads_that_hang(mount_fake: MountFake, binding: str) -> None:
    mount = mount_fake("--fuse", binding)
    mount.tell("delay", "read", "/P1/S1/big.bin", 600)
    reader = subprocess.Popen(["cat", mount.path / "P1/S1/big.bin"], stdout=subprocess.DEVNULL)
    while mount.tell("state")["most_in_flight"] == 0:
        time.sleep(0.01)
    started_s = time.monotonic()
    assert mount.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started_s < 10
    reader.wait(10)
    assert not is_mounted(mount.path)


def test_ctrl_c_in_the_foreground_is_a_clean_end(server: DemoServer, tmp_path: Path) -> None:
    with mounted(server.url, tmp_path, user="demo", password="demo") as mount:
        assert mount.process is not None
        mount.process.send_signal(signal.SIGINT)
        assert mount.process.wait(20) == 0
        assert not is_mounted(mount.path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1)])
def test_a_signal_while_mounting_leaves_nothing(room: Room, server: DemoServer, number: int, code: int) -> None:
    server.fault("projects", "stall", times=None)
    try:
        command = [sys.executable, "-m", "xnatfs", "mount", "--cache-dir", str(room.path / "cache"), room.source]
        process = subprocess.Popen(
            [*command, str(room.mnt)],
            env=room.environment,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # below nohup SIGHUP is ignored, and stays so
        )
        deadline_s = time.monotonic() + 10
        while len(processes_naming(room.mnt)) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == code
        room.assert_left()
    finally:
        server.clear_faults()


def test_after_kill_9_the_mount_is_dead_and_mounting_again_heals_it(room: Room) -> None:
    assert room.mount().returncode == 0
    content = (room.mnt / FILE).read_bytes()
    pid = room.daemon()
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    with pytest.raises(OSError) as raised:
        os.listdir(room.mnt)
    assert raised.value.errno == errno.ENOTCONN
    assert room.mount().returncode == 0
    assert (room.mnt / FILE).read_bytes() == content
    assert room.umount().returncode == 0
    room.assert_left()


def start_daemon(serve: str, limit_s: float) -> tuple[str, str]:
    """(the error of ``daemon.start``, the children left), in a process of its own: one with threads must not fork."""
    program = f"""
import os, signal, time
from pathlib import Path
from xnatfs.cli import daemon
try:
    daemon.start(lambda ready: {serve}, None, {limit_s})
except Exception as exc:
    print(type(exc).__name__, exc)
print("children:", Path(f"/proc/self/task/{{os.getpid()}}/children").read_text())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    error, _, children = done.stdout.partition("children:")
    return error.strip(), children.strip()


def test_a_process_that_dies_before_it_is_ready_is_one_clear_line() -> None:
    error, children = start_daemon("os.kill(os.getpid(), signal.SIGKILL)", 10)
    assert error.startswith("XnatfsError mount: ") and error.endswith("ended unexpectedly (signal 9)")
    assert children == ""


def test_a_process_that_is_never_ready_is_ended() -> None:
    error, children = start_daemon("time.sleep(60)", 0.2)
    assert error == "TimedOut mount: no answer within 0 s"
    assert children == ""


# --- an ordinary user -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["2", "3"])
def test_an_ordinary_user_mounts_reads_and_unmounts(
    ordinary_user: OrdinaryUser, server: DemoServer, binding: str
) -> None:
    script = """
        set -e
        mkdir mnt
        $XNATFS mount --fuse $BINDING --cache-dir cache $SOURCE mnt
        ls mnt/DEMO/DEMO_001
        md5sum mnt/$FILE
        (cd mnt; if $XNATFS umount ../mnt 2>../busy; then exit 9; fi); cat busy
        if touch mnt/new 2>/dev/null; then exit 8; fi
        $XNATFS umount mnt
        ls -A mnt
    """
    done = run_as(ordinary_user, script, server, BINDING=binding)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "DEMO_001_MR1" in lines
    assert any("in use by sh (" in line for line in lines)
    assert processes_naming(ordinary_user.home) == []
    assert not is_mounted(ordinary_user.home / "mnt")


def test_an_ordinary_user_cleans_up_after_kill_9(ordinary_user: OrdinaryUser, server: DemoServer) -> None:
    script = """
        set -e
        mkdir mnt
        $XNATFS mount --foreground --cache-dir cache $SOURCE mnt & pid=$!
        until ls mnt/DEMO >/dev/null 2>&1; do kill -0 $pid; sleep 0.1; done
        kill -9 $pid; wait $pid || true
        $XNATFS mount --cache-dir cache $SOURCE mnt
        ls mnt
        $XNATFS umount mnt
    """
    done = run_as(ordinary_user, script, server)
    assert done.returncode == 0, done.stderr
    assert "DEMO" in done.stdout.splitlines()
    assert not is_mounted(ordinary_user.home / "mnt")


def test_an_ordinary_user_may_not_allow_others_unless_the_system_says_so(
    ordinary_user: OrdinaryUser, server: DemoServer
) -> None:
    if mountpoint._users_may_allow_other():
        script, code, said = "mkdir mnt; $XNATFS mount --allow-other $SOURCE mnt && $XNATFS umount mnt", 0, ""
    else:
        script, code, said = "mkdir mnt; $XNATFS mount --allow-other $SOURCE mnt", 5, "user_allow_other"
    done = run_as(ordinary_user, script, server)
    assert (done.returncode, said in done.stderr) == (code, True)


def test_an_ordinary_user_is_told_what_is_missing(ordinary_user: OrdinaryUser, server: DemoServer) -> None:
    done = run_as(ordinary_user, "mkdir mnt; PATH=/nowhere $XNATFS mount $SOURCE mnt", server)
    assert done.returncode == 5
    assert "fusermount" in done.stderr and "apt install fuse3" in done.stderr
    done = run_as(ordinary_user, "$XNATFS mount $SOURCE /etc", server)
    assert done.returncode == 5
    assert done.stderr.startswith("xnatfs: mount /etc: ")
    assert not is_mounted(ordinary_user.home / "mnt")


def test_a_closed_dev_fuse_is_5_with_the_chmod_to_run(ordinary_user: OrdinaryUser, server: DemoServer) -> None:
    closed = "import sys; from pathlib import Path; from xnatfs.frontends import mountpoint; "
    closed += "mountpoint.DEVICE = Path('closed'); from xnatfs.cli.main import main; sys.exit(main())"
    script = f'mkdir mnt; touch closed; chmod 0 closed; {sys.executable} -c "{closed}" mount $SOURCE mnt'
    if os.getuid() == 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        done = run_as(ordinary_user, script, server)
        assert done.returncode == 5
        assert "closed to this user" in done.stderr and "chmod 0666" in done.stderr


def run_as(user: OrdinaryUser, script: str, server: DemoServer, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = user_environment(user.home / "home", "demo", "demo")
    if os.getuid() == 0:
        os.chown(user.home / "home", user.uid, user.gid)
    environment |= {"XNATFS": f"{sys.executable} -m xnatfs", "SOURCE": server.url, "FILE": FILE, **variables}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return subprocess.run(
        user.command("/bin/sh", "-c", script),
        env=environment,
        cwd=user.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

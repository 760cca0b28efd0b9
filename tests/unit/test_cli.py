"""The command as a whole: exit codes, one line a failure, help that imports little. No network, no FUSE."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest

from xnatfs import __version__
from xnatfs.cli import inspect
from xnatfs.cli.main import COMMANDS, LazyGroup, cli, exit_code_for, hint_for, main, report_error
from xnatfs.cli.mount8 import mount_arguments
from xnatfs.cli.options import MESSAGES, SERVER, Invocation, MountPoint, Settings, with_options
from xnatfs.errors import (
    AccessDenied,
    CredentialsError,
    FuseError,
    LoginFailed,
    NotFound,
    StaleContent,
    Unavailable,
    UsageError,
)

ERRORS: dict[str, BaseException] = {
    "usage": UsageError("SOURCE: no", "write it so"),
    "credentials": CredentialsError("~/.netrc: no"),
    "fuse": FuseError("no /dev/fuse"),
    "login": LoginFailed("GET /data/auth: 401"),
    "away": Unavailable("GET /data/projects: refused"),
    "missing": NotFound("/P/x: no such file"),
    "denied": AccessDenied("/P: 403"),
    "stale": StaleContent("f: changed", "open it again"),
    "system": OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
    "bug": ZeroDivisionError("by\nzero"),
    "interrupt": KeyboardInterrupt(),
    "pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
}


@click.command()
@click.argument("kind")
@with_options(SERVER, MESSAGES)
def fail(kind: str, settings: Settings) -> None:
    """Fail as asked."""
    raise ERRORS[kind]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setitem(COMMANDS, "fail", (__name__, "fail", "Fail as asked."))


SOURCE = "https://host/x#/P a"


@pytest.mark.parametrize(
    ("called", "meant"),
    [
        (("/sbin/mount.xnatfs", SOURCE, "/m", "-o", "rw,a=b"), ["mount", "-o", "rw,a=b", "--", SOURCE, "/m"]),
        (("mount.xnatfs", "-o", "ro", SOURCE, "/m", "-o", "x"), ["mount", "-o", "ro", "-o", "x", "--", SOURCE, "/m"]),
        (("mount.fuse.xnatfs", SOURCE, "/m", "-snv", "-t", "xnatfs"), ["mount", "-v", "--", SOURCE, "/m"]),
        (("mount.xnatfs", SOURCE, "/m", "-f"), []),
        (("xnatfs", SOURCE, "/m", "-o", "rw,dev,suid"), ["mount", "-o", "rw,dev,suid", "--", SOURCE, "/m"]),
        (("xnatfs", "mount", SOURCE, "-o", "ro"), None),
        (("xnatfs", SOURCE, "/m"), None),
        (("xnatfs", "-v"), None),
    ],
)
def test_what_mount8_and_fuses_helper_call_is_the_command_mount(called: tuple[str, ...], meant: list[str]) -> None:
    assert mount_arguments(called[0], called[1:], COMMANDS) == meant


@pytest.mark.parametrize("called", [("/m",), (SOURCE, "/m", "x"), (SOURCE, "/m", "-N", "7"), (SOURCE, "/m", "-o")])
def test_a_helper_called_wrongly_is_told_how_it_is_called(
    called: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/sbin/mount.xnatfs", *called])
    assert main() == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert first.startswith("xnatfs: mount.xnatfs: ")
    assert hint == "hint: mount.xnatfs SOURCE MOUNTPOINT [-v] [-o KEY=VALUE[,...]]"


@pytest.mark.parametrize("command", ["umount", "status", "demo", "mount"])
def test_an_empty_mount_point_is_not_the_directory_one_is_in(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *(["https://host.invalid"] if command == "mount" else []), ""]) == 2
    assert "it is empty" in capsys.readouterr().err


def test_a_mount_point_is_not_looked_at_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    with monkeypatch.context() as patched:  # a silent mount would hang there, and one closed to us be no mount point
        for call in ("stat", "access"):
            patched.setattr(f"os.{call}", lambda path, *more, **named: asked.append(str(path)))
        place = MountPoint().convert("/mnt", None, None)
    assert place == Path("/mnt")
    assert "/mnt" not in asked


def test_source_and_mount_point_the_wrong_way_round_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "here", "https://host.invalid"]) == 2
    assert "SOURCE comes first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "code", "first_line"),
    [
        ("usage", 2, "xnatfs: SOURCE: no"),
        ("credentials", 3, "xnatfs: ~/.netrc: no"),
        ("fuse", 5, "xnatfs: no /dev/fuse"),
        ("login", 3, "xnatfs: GET /data/auth: 401"),
        ("away", 4, "xnatfs: GET /data/projects: refused"),
        ("missing", 1, "xnatfs: /P/x: no such file"),
        ("denied", 1, "xnatfs: /P: 403"),
        ("stale", 1, "xnatfs: f: changed"),
        ("system", 1, "xnatfs: /tmp/x: No space left on device"),
        ("bug", 1, "xnatfs: unexpected ZeroDivisionError: by zero"),
    ],
)
def test_every_failure_is_one_line_and_a_code(
    kind: str, code: int, first_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fail", kind]) == code
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == first_line
    assert len(lines) <= 2
    assert all(line.startswith("hint: ") for line in lines[1:])


def test_an_errors_own_hint_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fail", "stale"])
    assert capsys.readouterr().err.splitlines()[1] == "hint: open it again"


def test_a_refused_password_warns_of_locked_accounts(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fail", "login"])
    assert "accounts lock after repeated failures" in capsys.readouterr().err


def test_a_closed_door_without_a_login_is_a_matter_of_credentials() -> None:
    visitor = Invocation(credentials_origin="anonymous")
    assert exit_code_for(AccessDenied("/P: 403"), visitor) == 3
    assert "--user" in hint_for(AccessDenied("/P: 403"), visitor)
    assert exit_code_for(AccessDenied("/P: 403"), Invocation(credentials_origin="prompt")) == 1


def test_traceback_only_with_vv(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fail", "-v", "bug"])
    assert "Traceback" not in capsys.readouterr().err
    main(["fail", "-vv", "bug"])
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_gives_130_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "interrupt"]) == 130
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize("text", ["/a/\x1b[31mred\x07", "/a/\u202eb", "/lat\udce9"])
def test_a_failure_cannot_steer_the_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    report_error(f"{text}: no such file", f"list {text}")
    said = capsys.readouterr().err
    assert said.replace("\n", "").isprintable()
    assert said.startswith("xnatfs: /") and text not in said and ": no such file\n" in said


def test_a_failure_is_one_line_in_which_a_path_keeps_its_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    report_error("/CHEST WO  CONTRAST/a:\n  no such file", "look\nthere")
    assert capsys.readouterr().err == "xnatfs: /CHEST WO  CONTRAST/a: no such file\nhint: look there\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["moun", "x"], "there is no command 'moun'; did you mean mount?"),
        (["ls"], "ls: Missing argument"),
        (["ls", "--nonsense", "https://h"], "ls: No such option"),
        (["ls", "https://u:pw@h"], "SOURCE holds a user name or password"),
        (["ls", "s3://b?endpoint=http://u:pw@h"], "SOURCE holds a user name or password"),
        (["ls", "--cache-size", "3Q", "https://h"], "--cache-size: '3Q' is not a size"),
        ([], "Usage: xnatfs"),
    ],
)
def test_usage_errors_give_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_help_and_version_give_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"xnatfs {__version__}\n")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_loads_and_has_help_like_the_tables(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(cli, LazyGroup)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help
    assert command.help.splitlines()[0] == COMMANDS[name][2]
    assert main([name, "--help"]) == 0


def test_help_imports_no_command_and_nothing_heavy() -> None:
    script = (
        "import sys; from xnatfs.cli.main import main; main(['--help']); "
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in "
        "('requests', 'pyxnat', 'rich', 'diskcache', 'fuse', 'mfusepy', 'logging', 'platformdirs', 'aiohttp') "
        "or name.startswith('xnatfs.cli.')), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr.split() == ["xnatfs.cli.main", "xnatfs.cli.options", "xnatfs.cli.values"]


def test_config_show_prints_key_value_and_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config" / "xnatfs" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text('cache-size = "3G"\nproxy = "http://u:s3cret@proxy:3128"\n')
    monkeypatch.setenv("XNATFS_TIMEOUT", "2m")
    assert main(["config", "show", "--umask", "077", "-o", "ro,allow_other"]) == 0
    out = capsys.readouterr().out
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in out.splitlines()}
    assert rows["cache-size"] == ["3G", str(path)]
    assert rows["timeout"] == ["120s", "XNATFS_TIMEOUT"]
    assert rows["umask"] == ["077", "--umask"]
    assert rows["allow-other"] == ["yes", "-o"]
    assert rows["min-free"] == ["5%", "default"]
    assert rows["user"] == ["-", "default"]
    assert rows["proxy"] == ["http://***@proxy:3128", str(path)]


def test_without_standard_streams_a_command_ends_as_it_does_with_them() -> None:
    shell = f"{sys.executable} -m xnatfs config show <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell], check=False).returncode == 0


def test_a_closed_standard_output_ends_quietly() -> None:
    command = (
        f'{sys.executable} -c \'import sys; from xnatfs.cli.main import main; sys.exit(main(["config", "show"]))\''
    )
    result = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True, check=False)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("1-T1w.nii.gz", "1-T1w.nii.gz"),
        ("naïve", "naïve"),
        ("two words", "'two words'"),
        ("it's", "'it'\\''s'"),
        ("\x1b[31mred\n", "$'\\x1b[31mred\\x0a'"),
        ("a\u202eb", "$'a\\xe2\\x80\\xaeb'"),
        ("", "''"),
    ],
)
def test_names_on_a_terminal_are_quoted_and_cannot_steer_it(name: str, shown: str) -> None:
    assert inspect._safe(name, terminal=True) == shown
    assert inspect._safe(name, terminal=False) == name

"""Options: which place wins, what a value may look like, what a mistake is told; and how SOURCE is read."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from xnatfs.cli.options import (
    OPTIONS,
    Settings,
    default_cache_dir,
    default_config_path,
    default_session_dir,
    home_directory,
    load_settings,
    parse_pairs,
    set_up_logging,
)
from xnatfs.cli.sources import parse_source
from xnatfs.config import MIB, Config, Credentials, Source
from xnatfs.errors import UsageError
from xnatfs.reading.prefetch import GRAIN

NO_FILE = Path("/nonexistent/config.toml")


def load(
    flags: dict[str, object] | None = None,
    pairs: tuple[str, ...] = (),
    environ: dict[str, str] | None = None,
    config: Path = NO_FILE,
) -> Settings:
    return load_settings(flags or {}, pairs, environ or {}, config)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_nothing_given_gives_the_defaults_of_the_config_records() -> None:
    settings = load()
    expected = Config(source=Source("https", "https://host"))
    built = settings.config(Source("https", "https://host"), Credentials())
    assert built == dataclasses.replace(
        expected,
        cache=dataclasses.replace(expected.cache, directory=settings.cache_dir),
        http=dataclasses.replace(expected.http, session_dir=default_session_dir()),
    )
    assert set(settings.origins.values()) == {"default"}


def test_settings_have_exactly_the_fields_of_the_table() -> None:
    names = {field.name for field in dataclasses.fields(Settings)} - {"origins"}
    assert names == {option.name for option in OPTIONS}


def test_flag_wins_over_pair_over_environment_over_file_over_default(config_file: Path) -> None:
    config_file.write_text("connections = 3\n")
    steps = [
        (load(), 8, "default"),
        (load(config=config_file), 3, str(config_file)),
        (load(environ={"XNATFS_CONNECTIONS": "4"}, config=config_file), 4, "XNATFS_CONNECTIONS"),
        (load(pairs=("connections=5",), environ={"XNATFS_CONNECTIONS": "4"}, config=config_file), 5, "-o"),
        (load({"connections": "6"}, ("connections=5",), {"XNATFS_CONNECTIONS": "4"}, config_file), 6, "--connections"),
    ]
    for settings, value, origin in steps:
        assert (settings.connections, settings.origins["connections"]) == (value, origin)


def test_flags_that_were_not_given_do_not_hide_other_places() -> None:
    not_given = {"foreground": False, "verbose": 0, "project": (), "connections": None}
    environ = {"XNATFS_FOREGROUND": "yes", "XNATFS_VERBOSE": "2", "XNATFS_PROJECT": "A,B", "XNATFS_CONNECTIONS": "2"}
    settings = load(not_given, environ=environ)
    assert (settings.foreground, settings.verbose, settings.project, settings.connections) == (True, 2, ("A", "B"), 2)


def test_file_takes_numbers_lists_booleans_and_words(config_file: Path) -> None:
    config_file.write_text(
        'cache-size = 1048576\nmin_free = "10%"\nproject = ["A", "B"]\nallow-other = true\n'
        'umask = "077"\ntimeout = 2.5\nscan-type = "T1*"\n'
    )
    settings = load(config=config_file)
    assert (settings.cache_size, settings.min_free, settings.project) == (1048576, 0.1, ("A", "B"))
    assert (settings.allow_other, settings.umask, settings.timeout) == (True, 0o077, 2.5)
    assert settings.scan_type == ("T1*",)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("20G", 20 << 30), ("128M", 128 << 20), ("1.5k", 1536), ("2GiB", 2 << 30), ("3MB", 3 << 20), ("4096", 4096)],
)
def test_sizes_are_written_as_people_write_them(text: str, bytes_: int) -> None:
    assert load({"cache-size": text}).cache_size == bytes_


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("5m", 300), ("250ms", 0.25), ("1h", 3600), ("7", 7)])
def test_durations_are_written_as_people_write_them(text: str, seconds: float) -> None:
    assert load({"timeout": text}).timeout == seconds


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cache-size", "3Q", "--cache-size: '3Q' is not a size; write 20G, 512M or a number of bytes"),
        ("cache-size", "0", "--cache-size: '0' is not more than zero"),
        ("timeout", "soon", "--timeout: 'soon' is not a duration; write 60s, 5m or 1h"),
        ("timeout", "0", "--timeout: '0' is not more than zero"),
        ("timeout", "99999999d", "--timeout: '99999999d' is longer than 10000 days"),
        ("metadata-ttl", "9" * 400, f"--metadata-ttl: '{'9' * 400}' is longer than 10000 days"),
        ("cache-dir", "~no-such-user/x", "--cache-dir: there is no home directory for '~no-such-user/x'"),
        ("min-free", "100%", "--min-free: '100%' is not a share; write 5%"),
        ("min-free", "5G", "--min-free: '5G' is not a share; write 5%"),
        ("connections", "0", "--connections: '0' is not a whole number from 1 to 256"),
        ("connections", "-1", "--connections: '-1' is not a whole number from 1 to 256"),
        ("block-size", "64K", "--block-size: '64K' is not a block size; write a multiple of 128K, up to 64M"),
        ("umask", "999", "--umask: '999' is not a umask; write octal digits such as 022"),
        ("fuse", "4", "--fuse: '4' is none of auto, 2, 3"),
        ("names", "uri", "--names: 'uri' is none of label, id"),
        ("proxy", "user:hidden@host", "--proxy: a password on the command line can be seen by every user"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_its_place(key: str, value: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load({key: value})
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "url",
    [
        "http://mary:s3cret@127.0.0.1:99999",
        "http://mary:s3cret@[::1",
        "http://mary:s3c/ret@host:3128",
        "http://mary:s3c#ret@host",
        "http://mary:s3c?ret@host",
        "http://mary:s3c ret@host",
        "http://mary:s3cret@",
        "http://mary:s3cret@:3128",
    ],
)
def test_a_proxy_that_cannot_be_asked_is_refused_and_its_password_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="a proxy is written http://host:port") as caught:
        load(environ={"XNATFS_PROXY": url})
    assert "s3c" not in str(caught.value) + caught.value.hint
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("url", ["http://h:1", "HTTP://h/", "socks5h://m:p%2Fw@[::1]:1080", "https://a@b:p@h"])
def test_a_proxy_is_taken_as_it_is_written(url: str) -> None:
    assert load(environ={"XNATFS_PROXY": url}).proxy == url


@pytest.mark.parametrize("home", [None, "relative"])
def test_without_a_home_directory_one_is_told_to_set_it(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)  # as in a container that is run under any number
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    for place in (default_config_path, default_cache_dir, home_directory):
        with pytest.raises(UsageError, match="no home directory") as caught:
            place()
        assert "HOME" in caught.value.hint


def test_a_block_size_is_taken_when_the_reader_takes_it() -> None:
    for size in range(4096, MIB + 1, 4096):
        try:
            taken = load({"block-size": str(size)}).block_size == size
        except UsageError:
            taken = False
        assert taken == (size % GRAIN == 0), size


def test_a_listing_is_fresh_for_a_second_at_least() -> None:
    config = load({"metadata-ttl": "0"}).config(Source("https", "https://host"), Credentials())
    assert (config.listing.ttl_s, config.mount.attr_timeout_s) == (1.0, 1.0)


def test_a_bad_value_in_the_environment_is_named_by_its_variable() -> None:
    with pytest.raises(UsageError, match=r"^XNATFS_CACHE_SIZE: 'big' is not a size"):
        load(environ={"XNATFS_CACHE_SIZE": "big"})


@pytest.mark.parametrize(
    "line", ["umask = 22", "cache-size = true", "project = 3", "user = ['a', 'b']", "timeout = []"]
)
def test_a_file_value_of_the_wrong_kind_is_refused_with_key_and_file(config_file: Path, line: str) -> None:
    config_file.write_text(line + "\n")
    with pytest.raises(UsageError) as caught:
        load(config=config_file)
    assert str(caught.value).startswith(f"{line.split()[0]} in {config_file}: ")


def test_an_unknown_file_key_is_refused_with_the_nearest_known_one(config_file: Path) -> None:
    config_file.write_text('cache_sise = "1G"\n')
    with pytest.raises(UsageError, match="unknown option 'cache-sise'") as caught:
        load(config=config_file)
    assert caught.value.hint == "did you mean cache-size?"


def test_a_file_that_is_not_toml_is_refused_with_its_path(config_file: Path) -> None:
    config_file.write_text("cache-size: 20G\n")
    with pytest.raises(UsageError, match=f"config file {config_file}"):
        load(config=config_file)


def test_an_unknown_pair_key_is_refused_without_its_value() -> None:
    with pytest.raises(UsageError) as caught:
        load(pairs=("password=s3cret",))
    assert "s3cret" not in str(caught.value) + caught.value.hint
    assert "XNAT_PASS" in caught.value.hint


def test_pairs_take_what_mount_and_fstab_write() -> None:
    given = parse_pairs(
        ["rw,dev,suid,_netdev,noauto,sync,defaults,default_permissions,x-systemd.automount", "allow_other,uid=1000"]
    )
    assert given == {"allow-other": "1", "uid": "1000"}


def test_pair_user_with_a_name_is_the_option_and_without_one_is_fstabs_word() -> None:
    assert load(pairs=("user,user=mary",)).user == "mary"
    assert load(pairs=("user",)).user is None


def test_pairs_repeat_and_keep_escaped_commas() -> None:
    settings = load(pairs=("project=A,project=B", r"cache-dir=/tmp/a\,b"))
    assert (settings.project, settings.cache_dir) == (("A", "B"), Path("/tmp/a,b"))


def test_a_pair_without_its_value_is_refused() -> None:
    with pytest.raises(UsageError, match="-o cache-size: a value is missing"):
        load(pairs=("cache_size",))


def test_a_name_begins_no_line_of_the_log_and_steers_no_terminal(tmp_path: Path) -> None:
    logger = logging.getLogger("xnatfs")
    level, handlers = logger.level, list(logger.handlers)
    try:
        set_up_logging(load({"log-file": str(tmp_path / "log"), "verbose": 1}))
        logging.getLogger("xnatfs.test").info("read of %s failed", "a\nERROR \x1b[31mb")
    finally:
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
    (line,) = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert line.endswith(r"read of a ERROR \x1b[31mb failed")


def test_paths_are_absolute_and_know_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/mary")
    settings = load({"log-file": "x.log", "cache-dir": "~/cache"})
    assert (settings.log_file, settings.cache_dir) == (tmp_path / "x.log", Path("/home/mary/cache"))


def test_cache_dir_is_the_users_cache_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/mary/.cache")
    assert load().cache_dir == Path("/home/mary/.cache/xnatfs")


def test_settings_reach_the_records_of_the_layers_below() -> None:
    flags: dict[str, object] = {
        "connections": "3",
        "timeout": "5s",
        "metadata-ttl": "1m",
        "project": ("P",),
        "scan-type": ("T1*",),
        "resource": ("DICOM",),
        "names": "id",
        "memory": "16M",
        "uid": "7",
        "proxy": "http://proxy:3128",
    }
    config = load(flags).config(Source("https", "https://host"), Credentials("mary", "s3cret"))
    assert (config.http.max_connections, config.http.timeout_s, config.read.timeout_s) == (3, 5.0, 5.0)
    assert config.http.proxy == "http://proxy:3128"
    assert (config.listing.ttl_s, config.mount.attr_timeout_s, config.mount.uid) == (60.0, 60.0, 7)
    assert (config.tree.projects, config.tree.scan_types, config.tree.resources) == (("P",), ("T1*",), ("DICOM",))
    assert (config.tree.names, config.read.max_window, config.read.max_transfers) == ("id", 2 << 20, 2)
    assert "s3cret" not in repr(config)


@pytest.mark.parametrize(
    ("text", "scheme", "url", "inside"),
    [
        ("https://xnat.example.org", "https", "https://xnat.example.org", "/"),
        ("https://XNAT.example.org/", "https", "https://xnat.example.org", "/"),
        ("https://www.nitrc.org/ir#ixi", "https", "https://www.nitrc.org/ir", "/ixi"),
        ("https://host/ctx/#/P/S/E", "https", "https://host/ctx", "/P/S/E"),
        ("https://host:443#P//S/./E/", "https", "https://host", "/P/S/E"),
        ("https://host:8443", "https", "https://host:8443", "/"),
        ("http://localhost:8080", "http", "http://localhost:8080", "/"),
        ("xnat://host/ctx", "https", "https://host/ctx", "/"),
        ("xnat+http://host:80/ctx#/P", "http", "http://host/ctx", "/P"),
        ("XNAT+HTTPS://host", "https", "https://host", "/"),
        ("xnat.example.org", "https", "https://xnat.example.org", "/"),
        ("host:8443/ctx#/P", "https", "https://host:8443/ctx", "/P"),
        ("http://[::1]:8080#/P", "http", "http://[::1]:8080", "/P"),
        ("https://host#/P/S/E/scans/3-T1 #2?.nii", "https", "https://host", "/P/S/E/scans/3-T1 #2?.nii"),
        ("s3://Bucket_1/pre fix/#a/b", "s3", "s3://Bucket_1/pre fix", "/a/b"),
        ("S3://b?endpoint=http://127.0.0.1:9/x", "s3", "s3://b?endpoint=http://127.0.0.1:9/x", "/"),
        ("web+https://host/data/", "web+https", "web+https://host/data", "/"),
        ("file:///data/x", "file", "file:///data/x", "/"),
    ],
)
def test_source_is_read_as_server_and_path(text: str, scheme: str, url: str, inside: str) -> None:
    assert parse_source(text) == Source(scheme, url, inside)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a server"),
        ("./folder", "is not a server"),
        ("/mnt/x", "is not a server"),
        ("https://", "is not a server"),
        ("https://ho st", "is not a server"),
        ("https://host?x=1", "is not a server"),
        ("https://host:port", "host or port cannot be read"),
        ("https://host:99999", "host or port cannot be read"),
        ("https://[::1", "host or port cannot be read"),
        ("s3://", "names no place"),
        ("s3://b/../c", "goes up"),
        ("https://host#/P/../Q", "goes up"),
    ],
)
def test_a_source_that_is_no_server_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_source(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://mary:s3cret@host",
        "mary:s3cret@host",
        "https://mary:s3cret@host:port",
        "xnat://s3cret@host",
        "ftp://m:s3cret@host",
        "s3://s3cret@bucket/prefix",
    ],
)
def test_a_password_in_the_source_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert "s3cret" not in str(caught.value) + caught.value.hint

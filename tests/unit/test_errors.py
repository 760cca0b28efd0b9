"""Every archive error has an errno, a message without noise, and is the builtin that callers of Python catch."""

from __future__ import annotations

import errno
import inspect

import pytest

from xnatfs import errors
from xnatfs.errors import ArchiveError, XnatfsError

ARCHIVE_ERRORS = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, ArchiveError)]
COMMAND_ERRORS = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, XnatfsError)]


@pytest.mark.parametrize(
    ("kind", "code", "builtin"),
    [
        (errors.NotFound, errno.ENOENT, FileNotFoundError),
        (errors.AccessDenied, errno.EACCES, PermissionError),
        (errors.LoginFailed, errno.EACCES, PermissionError),
        (errors.Unavailable, errno.EIO, ConnectionError),
        (errors.TimedOut, errno.ETIMEDOUT, TimeoutError),
        (errors.StaleContent, errno.ESTALE, OSError),
        (errors.CorruptContent, errno.EIO, OSError),
        (errors.UnexpectedReply, errno.EIO, OSError),
    ],
)
def test_archive_errors_carry_their_errno_and_are_caught_as_the_builtin(
    kind: type[ArchiveError], code: int, builtin: type[OSError]
) -> None:
    with pytest.raises(builtin) as caught:
        raise kind("scan 4")
    assert caught.value.errno == code


@pytest.mark.parametrize("kind", ARCHIVE_ERRORS)
def test_an_archive_error_shows_its_message_alone_and_keeps_its_hint(kind: type[ArchiveError]) -> None:
    error = kind("GET scan 4: 503 after 3 tries", "try later")
    assert str(error) == "GET scan 4: 503 after 3 tries"
    assert error.hint == "try later"
    assert kind("no hint").hint == ""


@pytest.mark.parametrize("kind", ARCHIVE_ERRORS)
def test_an_archive_error_can_be_raised_again_as_a_copy_for_another_thread(kind: type[ArchiveError]) -> None:
    error = kind("what", "hint")
    copy = type(error)(str(error), error.hint)
    assert (type(copy), str(copy), copy.hint, copy.errno) == (kind, "what", "hint", error.errno)


def test_the_module_docstring_names_every_error() -> None:
    missing = [kind.__name__ for kind in ARCHIVE_ERRORS + COMMAND_ERRORS if kind.__name__ not in (errors.__doc__ or "")]
    assert missing == []


def test_exit_codes_are_those_of_the_contract() -> None:
    codes = {kind.__name__: kind.exit_code for kind in COMMAND_ERRORS + ARCHIVE_ERRORS}
    assert codes["UsageError"] == 2
    assert codes["CredentialsError"] == codes["LoginFailed"] == 3
    assert codes["Unavailable"] == codes["TimedOut"] == 4
    assert codes["FuseError"] == 5
    assert codes["NotFound"] == codes["AccessDenied"] == codes["StaleContent"] == codes["CorruptContent"] == 1

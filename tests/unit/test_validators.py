"""Which validators of one file speak of the same bytes: a mix of versions must not pass, a zip and a GET must."""

from __future__ import annotations

import pytest

from xnatfs.archives.base import weak_validator
from xnatfs.reading.validators import validators_agree

DATE = "Mon, 15 Jan 2024 10:00:03 GMT"


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (DATE, DATE, True),
        (DATE, "Mon, 15 Jan 2024 10:00:04 GMT", False),
        ("", "", True),
        ("", DATE, False),
        ('"etag"', '"other"', False),
        (weak_validator("2024-01-15T10:00:02", 1), DATE, True),
        (weak_validator("2024-01-15T15:30:02", 1), DATE, True),  # five and a half hours east
        (weak_validator("2024-01-14T22:15:02", None), DATE, True),
        (weak_validator("2024-01-15T10:00:04", 1), DATE, False),
        (weak_validator("2024-01-15T10:00:00", 1), DATE, False),
        (weak_validator("2024-01-15T10:01:02", 1), DATE, False),
        (weak_validator("2024-01-15T10:00:02", 1), '"etag"', False),
        (weak_validator("2024-01-15T10:00:02", 1), "", False),
        (weak_validator("", 1), DATE, False),
        (weak_validator("1980-00-00T00:00:00", 1), DATE, False),
        (weak_validator("2024-01-15T10:00:02", 1), weak_validator("2024-01-15T10:00:02", 1), True),
        (weak_validator("2024-01-15T10:00:02", 1), weak_validator("2024-01-15T11:11:12", 1), True),
        (weak_validator("2024-01-15T10:00:02", 1), weak_validator("2024-01-15T10:00:02", 2), False),
        (weak_validator("2024-01-15T10:00:02", None), weak_validator("2024-01-15T10:00:04", None), False),
    ],
)
def test_validators_agree_when_they_can_be_of_the_same_bytes(one: str, other: str, agree: bool) -> None:
    assert validators_agree(one, other) is agree
    assert validators_agree(other, one) is agree

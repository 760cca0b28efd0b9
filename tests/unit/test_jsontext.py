"""JSON as the standard library reads it, whichever of the two libraries does."""

from __future__ import annotations

import json

import pytest

from xnatfs import jsontext


@pytest.mark.parametrize(
    "text",
    ['{"a": [1, 2.5, null, true, "\u00e9"]}', '{"a": NaN}', '"\\ud83d"', "[[[[]]]]", '{"a": 1, "a": 2}', " 3 "],
)
def test_a_document_reads_as_with_the_standard_library(text: str) -> None:
    assert repr(jsontext.loads(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("data", [b"", b"<html>", b"{'a': 1}", b'"\xe9"', b"[1,]"])
def test_what_is_no_json_in_utf_8_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        jsontext.loads(data)


@pytest.mark.parametrize("value", [["a", 1, None, False, {"k": []}], "\ud83d", "\u00e9\U0001f600", [[["x"]]]])
def test_what_is_written_reads_back(value: object) -> None:
    assert jsontext.loads(jsontext.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["a\\ud83d"]', ["a\ufffd"]),
        ('{"\\udc00": [{"b": "\\ud83d\\ude00"}]}', {"\ufffd": [{"b": "\U0001f600"}]}),
        ("[NaN]", None),
    ],
)
def test_half_a_character_of_a_server_becomes_one_that_can_be_written(text: str, said: object) -> None:
    found = jsontext.received(text.encode())
    assert found == said or (said is None and found[0] != found[0])
    json.dumps(found, ensure_ascii=False).encode()

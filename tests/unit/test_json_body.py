"""Bodies are JSON that every parser reads in the same way."""

from typing import Any

import pytest

from rest_api.http.json_body import MAX_DEPTH, UnreadableBodyError, invalid_values, parse


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b' [1.5, -0, 1e3, "\\ud83d\\ude42"]\r\n', [1.5, 0, 1000.0, "🙂"]),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, ...),
        (b'{"a":{"x":1},"b":{"x":1}}', {"a": {"x": 1}, "b": {"x": 1}}),
    ],
)
def test_json_is_read(body: bytes | str, value: Any) -> None:
    found = parse(body if isinstance(body, bytes) else body.encode())
    assert value is ... or found == value


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xef\xbb\xbf", "not JSON"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":1,}', "not JSON"),
        (b'["\t"]', "not JSON"),
        (b"[01]", "not JSON"),
        (b"[+1]", "not JSON"),
        (b'["\xff"]', "not UTF-8"),
        (b'["\xed\xa0\x80"]', "not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        ('{"a":1}'.encode("utf-16-le"), "not JSON"),
        ('{"a":1}'.encode("utf-32-be"), "not JSON"),
        (b'{"a":1,"a":1}', "'a' occurs twice"),
        (b'{"a":1,"\\u0061":2}', "'a' occurs twice"),
        (b'[{"b":{"a":1,"a":2}}]', "'a' occurs twice"),
        (b'{"\\ud800":1,"\\ud800":1}', "occurs twice"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deeper"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "deeper"),
        (b"[" * 30_000 + b"]" * 30_000, "deeper"),
        (b"[" * 65_000, "not JSON|deeper"),
    ],
)
def test_what_parsers_read_differently_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(UnreadableBodyError, match=reason):
        parse(body)


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b'{"a":"b"}', []),
        (b'{"a":"\\ud83d\\ude42"}', []),
        (b'{"a":"\\\\u0000"}', []),
        (b'{"a":"\\uffff"}', []),
        (b'{"a":"\\u0000"}', ["/a"]),
        (b'{"a":["x",{"b/c":"x\\u0000y"}]}', ["/a/1/b~1c"]),
        (b'{"a":"\\ud800"}', ["/a"]),
        (b'{"a":"\\uDFFF x"}', ["/a"]),
        (b'{"a":"\\ude42\\ud83d"}', ["/a"]),
        (b'{"x\\u0000":1}', [""]),
        (b'{"p":{"\\ud800":"\\u0000"}}', ["/p", "/p/?"]),
        (b'"\\u0000"', [""]),
        (b'{"a":NaN}', ["/a"]),
        (b"[Infinity,-Infinity,1]", ["/0", "/1"]),
        (b"[1e400]", ["/0"]),
        (b"[-1E+400]", ["/0"]),
        (b"[" + b"1" * 290 + b"e99]", ["/0"]),
        (b"[" + b"9" * 400 + b"]", ["/0"]),
        (b"[-" + b"9" * 6000 + b"]", ["/0"]),
        (b"[1e308,1e-999," + b"9" * 300 + b"]", []),
        (b'["NaN"]', []),
    ],
)
def test_values_that_cannot_be_stored_are_found_wherever_they_are(body: bytes, pointers: list[str]) -> None:
    assert [error["pointer"] for error in invalid_values(body, parse(body))] == pointers

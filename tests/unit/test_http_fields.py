"""Header fields as their RFCs say: preferences, entity tags, media types."""

import pytest

from rest_api.http.fields.entity_tags import entity_tags, strongly_matches, weakly_matches
from rest_api.http.fields.lists import parameter, split
from rest_api.http.fields.media_types import json_quality, parse, prefers_html, quality
from rest_api.http.fields.preferences import preferences, wait_seconds

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("wait=5", 5),
        ("WAIT=5", 5),
        ("Wait = 5", 5),
        ('wait="5"', 5),
        ('wait = "5"', 5),
        ("\twait=5 ", 5),
        ("respond-async, wait=5", 5),
        ("wait=5, respond-async", 5),
        ("return=minimal;foo=bar,wait=5;x", 5),
        ('foo="a, wait=9", wait=5', 5),
        ('foo="a\\", wait=9", wait=5', 5),
        (", ,wait=5,,", 5),
        ("wait=5, wait=6", 5),
        ("wait=x, wait=6", None),
        ("wait, wait=6", None),
        ("wait=30", 30),
        ("wait=31", 30),
        ("wait=0005", 5),
        ("wait=" + "9" * 5000, 30),
        ("wait=" + "0" * 5000 + "7", 7),
        ("wait=0", None),
        ("wait", None),
        ("wait=", None),
        ('wait=""', None),
        ("wait=-5", None),
        ("wait=+5", None),
        ("wait=5.5", None),
        ("wait=5s", None),
        ("wait=5 6", None),
        ("wait=\u0665", None),
        ("foo; wait=5", None),
        ("foo;wait=5, bar", None),
        ("; wait=5", None),
        ('"wait=5"', None),
        ('foo="wait=5', None),
        ("await=5", None),
        ("wait:5", None),
        ("", None),
        (None, None),
    ],
)
def test_wait_is_read_as_rfc_7240_says(value: str | None, seconds: int | None) -> None:
    assert wait_seconds(value) == seconds


def test_preferences_have_lower_case_names_and_no_parameters() -> None:
    assert preferences('Respond-Async, RETURN=minimal; x="1", a="b\\"c"') == {
        "respond-async": "",
        "return": "minimal",
        "a": 'b"c',
    }


TAG, OTHER, WEAK = '"1.1"', '"2.0"', 'W/"1.1"'


@pytest.mark.parametrize(
    ("value", "etag", "weakly", "strongly"),
    [
        (TAG, TAG, True, True),
        (WEAK, TAG, True, False),
        (TAG, WEAK, True, False),
        (WEAK, WEAK, True, False),
        (f"{OTHER}, {TAG}", TAG, True, True),
        (f"{OTHER},{TAG},", TAG, True, True),
        (f"{OTHER} ,\t{WEAK}", TAG, True, False),
        ('"a,b", "1.1"', TAG, True, True),
        ('"x, 1.1"', TAG, False, False),
        ('"a,b"', '"a,b"', True, True),
        ('"a\\"', '"a\\"', True, True),
        ('""', '""', True, True),
        ("*", TAG, True, True),
        (" * ", TAG, True, True),
        ("*", None, True, True),
        (TAG, None, False, False),
        (f"*, {OTHER}", TAG, False, False),
        (OTHER, TAG, False, False),
        ("1.1", TAG, False, False),
        ("'1.1'", TAG, False, False),
        ('w/"1.1"', TAG, False, False),
        ('W/ "1.1"', TAG, False, False),
        ('"1.1', TAG, False, False),
        ('1.1"', TAG, False, False),
        ('"1.1" "2.0"', TAG, False, False),
        (f"1.1, {TAG}", TAG, True, True),
        (f'"1.1, {OTHER}', OTHER, True, True),
        ("", TAG, False, False),
        (",,", TAG, False, False),
    ],
)
def test_entity_tags_match_as_rfc_9110_says(value: str, etag: str | None, weakly: bool, strongly: bool) -> None:
    assert (weakly_matches(value, etag), strongly_matches(value, etag)) == (weakly, strongly)


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("text/*", True),
        ("TEXT/HTML", True),
        ("text/html;q=0.5, */*;q=0.1", True),
        ("text/html;q=0.5,application/json;q=0.4", True),
        ("application/json;q=0, */*;q=0.5, application/problem+json;q=0", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html, application/json", False),
        ("text/html;q=0.8, application/problem+json;q=0.9", False),
        ("text/html;q=0", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=2", False),
        ("text/html;q=abc", False),
        ("application/xml", False),
        ("text/plain, */*", False),
        ("text/html;q=0.3, */*;q=0.3", False),
        (";;;,,,q=1", False),
    ],
)
def test_html_is_for_clients_that_prefer_it(accept: str, html: bool) -> None:
    assert prefers_html(accept) is html


def test_the_most_specific_range_decides() -> None:
    accept = "application/*;q=0.2, application/json;q=0.7, */*;q=0.9"
    assert (quality(accept, "application/json"), quality(accept, "application/xml")) == (0.7, 0.2)
    assert (quality(accept, "text/html"), json_quality(accept)) == (0.9, 0.7)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("application/json", ("application/json", {})),
        ("Application/JSON ; Charset=UTF-8", ("application/json", {"charset": "UTF-8"})),
        ('application/json;charset="utf-8"; charset=latin-1', ("application/json", {"charset": "utf-8"})),
        ("application/json; charset", ("application/json", {"charset": ""})),
        ("application/json; =x; a b", ("application/json", {})),
        ("", ("", {})),
        (";", ("", {})),
    ],
)
def test_media_types_are_parsed(value: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parse(value) == expected


def test_lists_are_split_outside_of_quotes() -> None:
    assert split('a, "b, c" , "d', ",") == ["a", '"b, c"', '"d']
    assert split("a; b;;", ";") == ["a", "b"]
    assert parameter("a b=c") is None
    assert entity_tags('"' + '","' * 5000) is not None
    assert split('"\\' * 8000, ",") == ['"\\' * 8000]

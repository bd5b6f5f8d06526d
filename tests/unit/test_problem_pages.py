"""The pages under `/problems/`: a list of all kinds, and what happened and what to do for each."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from rest_api.http.problem_pages import kind_page, list_page, occurrence_page
from rest_api.protocol.problem_advice import ADVICE
from rest_api.protocol.problems import SLUGS
from tests.testkit.odd_ids import edge_app

ROOT = Path(__file__).resolve().parents[2]
APP = edge_app()
VOID = {"meta", "link", "br"}


class Structure(HTMLParser):
    """Checks that every element is closed, and collects links and style sheets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name == "href"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=APP, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        yield client


def test_every_kind_of_problem_has_advice() -> None:
    assert ADVICE.keys() == SLUGS.keys()
    for slug, advice in ADVICE.items():
        assert re.fullmatch(r"[A-Z].*\.", advice), slug
        assert advice.count("`") % 2 == 0
        assert advice != SLUGS[slug][2]


def test_every_kind_is_in_the_table_of_the_contract() -> None:
    contract = (ROOT / "docs" / "contract.md").read_text()
    table = contract[contract.index("### Problems") : contract.index("### Limits")]
    listed: dict[str, set[str]] = {}
    for statuses, slugs in re.findall(r"^\| ([0-9, ]+) \| (.*) \|$", table, re.MULTILINE):
        for slug in re.findall(r"`([a-z-]+)`", slugs):
            listed[slug] = set(re.findall(r"[0-9]{3}", statuses))
    assert listed.keys() == SLUGS.keys()
    assert all(str(status) in listed[slug] for slug, (status, _, _) in SLUGS.items())


@pytest.mark.parametrize("slug", SLUGS)
async def test_each_kind_has_a_page_and_a_document(client: httpx.AsyncClient, slug: str) -> None:
    page = await client.get(f"/problems/{slug}")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "Accept" in page.headers["vary"].split(", ")
    assert "What happened" in page.text
    assert "What to do" in page.text
    assert {"/", "/problems/", "/static/shop.css"} <= {*Structure(page.text).links}
    found = await client.get(f"/problems/{slug}", headers={"accept": "application/json"})
    assert (found.status_code, found.headers["vary"]) == (200, page.headers["vary"])
    assert found.json()["type"] == f"/problems/{slug}"
    assert found.json()["advice"] == ADVICE[slug]


@pytest.mark.parametrize("path", ["/problems", "/problems/"])
async def test_the_list_has_every_kind(client: httpx.AsyncClient, path: str) -> None:
    page = await client.get(path, headers={"accept": "text/html, application/json;q=0.9"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert {f"/problems/{slug}" for slug in SLUGS} <= {*Structure(page.text).links}
    found = await client.get(path, headers={"accept": "text/html;q=0.1, application/json"})
    assert {item["type"] for item in found.json()["items"]} == {f"/problems/{slug}" for slug in SLUGS}
    assert all("Accept" in each.headers["vary"].split(", ") for each in (page, found))


async def test_links_and_styles_of_the_pages_exist(client: httpx.AsyncClient) -> None:
    document = {"type": "/problems/not-found", "title": "Not found", "status": 404, "instance": "1"}
    for page in (list_page(), kind_page("invalid"), occurrence_page(document)):
        for link in Structure(page).links:
            assert (await client.get(link)).status_code == 200, link


def test_whatever_a_problem_says_is_text_on_its_page() -> None:
    document = {
        "type": "/problems/invalid",
        "title": "<b>",
        "status": 422,
        "detail": "<script>alert(1)</script> & {title}",
        "instance": '"><img src=x>',
        "errors": [{"pointer": "/<i>", "detail": "`<u>`"}],
        "trace_id": "<hr>",
    }
    page = occurrence_page(document)
    assert not re.search(r"<(b|script|img|i|u|hr)\b", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; {title}" in page
    Structure(page)

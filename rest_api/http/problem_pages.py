"""HTML pages about problems: the one that a browser gets instead of a problem document, and those of `/problems/`."""

import html
import re
from collections.abc import Mapping
from typing import Any, Final

from rest_api.protocol.problem_advice import ADVICE
from rest_api.protocol.problems import SLUGS

_CODE: Final = re.compile(r"`([^`]+)`")
_PAGE: Final = """<!doctype html>
<html lang="en-GB">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>{title} · Holdfast</title>
  <link rel="icon" href="/static/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="/static/shop.css">
  <link rel="stylesheet" href="/static/problems.css">
</head>
<body>
  <header class="top">
    <div class="brand">
      <h1><a href="/">Holdfast</a></h1>
      <p>Gifts and small things for the home</p>
    </div>
  </header>
  <main class="problem">
{content}
    <p class="links"><a href="/">To the shop</a> {more}</p>
  </main>
</body>
</html>
"""
_TO_LIST: Final = '<a href="/problems/">All kinds of problems</a>'


def description(slug: str) -> dict[str, Any]:
    """Return a kind of problem as JSON: its `type`, title and status, what it means, and what to do about it."""
    status, title, meaning = SLUGS[slug]
    return {"type": f"/problems/{slug}", "title": title, "status": status, "meaning": meaning, "advice": ADVICE[slug]}


def list_page() -> str:
    """Return the page that lists all kinds of problems by status."""
    rows = "\n".join(
        f'      <tr><td>{status}</td><td><a href="/problems/{slug}">{html.escape(title)}</a></td>'
        f"<td>{_text(meaning)}</td></tr>"
        for slug, (status, title, meaning) in sorted(SLUGS.items(), key=lambda item: (item[1][0], item[0]))
    )
    content = f"""    <h2>Problems</h2>
    <p>Each error of this shop is of one of these kinds. Programs receive it as JSON (RFC 9457).</p>
    <table>
      <tr><th>Status</th><th>Problem</th><th>What happened</th></tr>
{rows}
    </table>"""
    return _PAGE.format(title="Problems", content=content, more="")


def kind_page(slug: str) -> str:
    """Return the page that explains a kind of problem."""
    status, title, meaning = SLUGS[slug]
    content = f"""    <h2>{status} {html.escape(title)}</h2>
    <h3>What happened</h3>
    <p>{_text(meaning)}</p>
    <h3>What to do</h3>
    <p>{_text(ADVICE[slug])}</p>
    <p class="reference"><code>/problems/{slug}</code></p>"""
    return _PAGE.format(title=html.escape(title), content=content, more=_TO_LIST)


def occurrence_page(document: Mapping[str, Any]) -> str:
    """Return the page about one problem, given its problem document."""
    slug = str(document["type"]).rpartition("/")[2]
    errors = "".join(
        f"<li><code>{html.escape(error['pointer'])}</code> {html.escape(error['detail'])}</li>"
        for error in document.get("errors", ())
    )
    detail = document.get("detail") or ""
    references = [f"request {document.get('instance', '')}"]
    if "trace_id" in document:
        references.append(f"trace {document['trace_id']}")
    content = f"""    <h2>{document["status"]} {html.escape(document["title"])}</h2>
    <p>{_text(SLUGS[slug][2])}</p>
    {f"<p>In detail: {html.escape(detail)}</p>" if detail else ""}
    {f"<ul>{errors}</ul>" if errors else ""}
    <h3>What to do</h3>
    <p>{_text(ADVICE[slug])}</p>
    <p class="reference">{html.escape(", ".join(references))}</p>"""
    about = f'<a href="/problems/{slug}">About this problem</a>'
    return _PAGE.format(title=html.escape(document["title"]), content=content, more=about)


def _text(text: str) -> str:
    """Return text as HTML, with what is between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", html.escape(text))

"""Pages of the mail catcher: a list of mails, one mail as text and as HTML, and all mails as JSON.

A mail's HTML is foreign content. It is shown in a frame that may not run scripts or load anything.
"""

import html
import re
from collections.abc import Iterable
from typing import Final

import orjson

from infrastructure.process.health import HttpResponse
from notification_service.catcher.mailbox import Mail, Mailbox

HTML: Final = "text/html; charset=utf-8"
CONTENT_SECURITY_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
PAGE_HEADERS: Final = {
    "Content-Security-Policy": f"{CONTENT_SECURITY_POLICY}; frame-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MAIL_HEADERS: Final = {
    **PAGE_HEADERS,
    "Content-Security-Policy": f"sandbox; {CONTENT_SECURITY_POLICY}; frame-ancestors 'self'",
}
_STYLE: Final = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #8884; vertical-align: top }
pre { white-space: pre-wrap; padding: 1rem; border: 1px solid #8884 }
iframe { width: 100%; height: 32rem; border: 1px solid #8884; background: #fff }
"""
_ONE: Final = re.compile(r"^/mails/(\d{1,12})(/html)?$")


class MailPages:
    """Pages by path."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self._json: tuple[int, bytes] = (-1, b"")
        """All mails as JSON, and the version of the mailbox that it shows."""

    def __call__(self, path: str) -> HttpResponse | None:
        """Return the page of `/`, `/mails.json`, `/mails/N` or `/mails/N/html`; `None` for any other path."""
        if path == "/":
            return _page("Caught mails", _mail_list(self.mailbox.mails()))
        if path == "/mails.json":
            if self._json[0] != self.mailbox.version:
                mails = [_to_json(mail) for mail in self.mailbox.mails()]
                self._json = (self.mailbox.version, orjson.dumps({"mails": mails}))
            return HttpResponse(200, "application/json", self._json[1], PAGE_HEADERS)
        match = _ONE.match(path)
        mail = self.mailbox.mail(int(match[1])) if match else None
        if match is None or mail is None:
            return None
        if match[2]:
            return HttpResponse(200, HTML, self.mailbox.html(mail.number).encode(errors="replace"), MAIL_HEADERS)
        return _page(mail.subject, _mail_page(mail, self.mailbox.headers(mail.number)))


def _to_json(mail: Mail) -> dict[str, object]:
    return {
        "number": mail.number,
        "message_id": mail.message_id,
        "from": mail.sender,
        "to": mail.recipients,
        "subject": mail.subject,
        "received_at": mail.received_at,
        "copies": mail.copies,
        "template": mail.template,
        "cause": mail.cause,
        "text": mail.text,
    }


def _page(title: str, content: str) -> HttpResponse:
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{content}</body></html>"
    )
    return HttpResponse(200, HTML, text.encode(), PAGE_HEADERS)


def _mail_list(mails: list[Mail]) -> str:
    rows = "".join(
        f'<tr><td><a href="/mails/{mail.number}">{html.escape(mail.subject) or "(no subject)"}</a></td>'
        f"<td>{html.escape(mail.recipients)}</td><td>{html.escape(mail.received_at[:19])}</td><td>{mail.copies}</td></tr>"
        for mail in mails
    )
    head = "<tr><th>Subject</th><th>To</th><th>Received (UTC)</th><th>Copies</th></tr>"
    return (
        f'<p>{len(mails)} mails; none was delivered. <a href="/mails.json">As JSON</a>.</p><table>{head}{rows}</table>'
    )


def _mail_page(mail: Mail, all_headers: Iterable[tuple[str, str]]) -> str:
    headers = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in all_headers
    )
    return (
        f'<p><a href="/">All mails</a></p><table>{headers}</table>'
        f"<h2>Text</h2><pre>{html.escape(mail.text)}</pre>"
        f'<h2>HTML</h2><iframe sandbox src="/mails/{mail.number}/html" title="The mail as HTML"></iframe>'
    )

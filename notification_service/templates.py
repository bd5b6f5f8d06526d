"""Texts of notices. One table serves all channels; each channel takes as much of a text as it can carry.

A text is a list of paragraphs with placeholders. A paragraph with an unknown placeholder is left out, so a notice never
says "None". For `message`, title and body are parameters.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from contracts.notifications import Template

SMS_CHARACTERS: Final = 320
"""Length of two short messages."""
TITLE_CHARACTERS: Final = 120


@dataclass(frozen=True, slots=True)
class TemplateText:
    """Title and paragraphs of a template; the first paragraph carries the main message."""

    title: str
    paragraphs: tuple[str, ...]


TEMPLATES: Final[Mapping[Template, TemplateText]] = {
    "order_confirmed": TemplateText(
        "Your order {order} is confirmed",
        (
            "Thank you: your order is paid, and everything in it is yours.",
            "{lines}",
            "Total: {total}",
            "We tell you when it is on its way.",
        ),
    ),
    "order_cancelled": TemplateText(
        "Your order {order} was cancelled",
        (
            "Your order was cancelled: {why}.",
            "You get {refunded} back, to where it came from.",
            "Nothing of it is on its way to you, and you need not do anything.",
        ),
    ),
    "payment_failed": TemplateText(
        "The payment of your order {order} failed",
        (
            "Your order could not be paid: {why}.",
            "You get {refunded} back, to where it came from.",
            "What you chose is in your cart again for a short while. You may try once more, or with another card.",
        ),
    ),
    "order_refunded": TemplateText(
        "A refund for your order {order}",
        (
            "We have given {amount} back, to where it came from.",
            "Total refunded for this order: {refunded}.",
            "Your bank may take some days to show it.",
        ),
    ),
    "order_shipped": TemplateText(
        "Your order {order} is on its way",
        (
            "Your parcel has left us.",
            "{carrier} brings it. Its number is {tracking}.",
        ),
    ),
    "order_delivered": TemplateText(
        "Your order {order} has arrived",
        ("Your parcel was delivered. Enjoy what is in it!",),
    ),
    "cart_expiring": TemplateText(
        "Your cart is about to expire",
        (
            "What is in your cart is held for you until {until} (UTC). After that it goes back on the shelf.",
            "Add something, or check out, to keep it.",
        ),
    ),
    "cart_changed": TemplateText(
        "Your cart has changed",
        (
            "Your cart was changed elsewhere. It is now at version {version}.",
            "{lines}",
        ),
    ),
    "account_confirm": TemplateText(
        "Confirm your e-mail address",
        (
            "Somebody has registered an account with this address. If it was you, confirm the address.",
            "Open {link}",
            "Your code is {token}",
            "The code is valid for 24 hours and once. If it was not you, ignore this mail.",
        ),
    ),
    "account_exists": TemplateText(
        "You have an account already",
        (
            "Somebody has tried to register an account with this address, which has one already.",
            "If it was you, log in, or set another password if you do not know yours any more.",
            "If it was not you, you need not do anything.",
        ),
    ),
    "password_reset": TemplateText(
        "Set a new password",
        (
            "Somebody has asked to set a new password for your account.",
            "Open {link}",
            "Your code is {token}",
            "The code is valid for 30 minutes and once. If it was not you, ignore this mail: your password stays.",
        ),
    ),
    "password_changed": TemplateText(
        "Your password was changed",
        (
            "The password of your account was changed, and other devices were logged out.",
            "If it was not you, set a new password now.",
        ),
    ),
    "message": TemplateText("{title}", ("{body}",)),
}

_LINE_BREAK: Final = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters, controls of the direction of text, blanks without a width, and halves of surrogate pairs."""

_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")
_HTML_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
</head>
<body style="margin:0;padding:24px;background:#f6f4ef;color:#22201c;font:16px/1.5 Georgia,serif">
<table role="presentation" style="max-width:560px;margin:0 auto;background:#fff;border:1px solid #e2ddd2">
<tr><td style="padding:28px 32px">
<h1 style="margin:0 0 16px;font-size:22px;line-height:1.25">{title}</h1>
{paragraphs}
</td></tr>
</table>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class RenderedText:
    """The rendered text of a notice: a title of one line, and the paragraphs without unknown placeholders."""

    title: str
    paragraphs: tuple[str, ...]

    @property
    def body(self) -> str:
        """The paragraphs as plain text."""
        return "\n\n".join(self.paragraphs)

    @property
    def sms(self) -> str:
        """Title and first paragraph, cut to the length of two short messages."""
        text = ". ".join(part.rstrip(".") for part in (self.title, *self.paragraphs[:1])) + "."
        return text if len(text) <= SMS_CHARACTERS else text[: SMS_CHARACTERS - 1] + "…"

    @property
    def html(self) -> str:
        """The text as an HTML page for mail readers. Parameters are escaped."""
        paragraphs = "\n".join(
            f'<p style="margin:0 0 12px">{html.escape(paragraph).replace(chr(10), "<br>")}</p>'
            for paragraph in self.paragraphs
        )
        return _HTML_PAGE.format(title=html.escape(self.title), paragraphs=paragraphs)


def render(template: Template, params: Mapping[str, str]) -> RenderedText:
    """Render `template` with `params`. Parameters without a placeholder are ignored."""
    text = TEMPLATES[template]
    title = one_line(_fill(text.title, params, otherwise=""))[:TITLE_CHARACTERS].rstrip()
    filled = (visible(_fill(paragraph, params)).strip() for paragraph in text.paragraphs)
    return RenderedText(title or "A message for you", tuple(paragraph for paragraph in filled if paragraph))


def visible(text: str) -> str:
    """Return a text without invisible characters, with LF as the only line break. A reader sees the same text."""
    return _INVISIBLE.sub("", _LINE_BREAK.sub("\n", text))


def one_line(text: str) -> str:
    """Return a text in one line, without invisible characters and with single blanks."""
    return " ".join(visible(text).split())


def placeholders(template: Template) -> frozenset[str]:
    """Return the placeholders of a template."""
    text = TEMPLATES[template]
    return frozenset(name for part in (text.title, *text.paragraphs) for name in _PLACEHOLDER.findall(part))


def _fill(text: str, params: Mapping[str, str], *, otherwise: str | None = None) -> str:
    """Fill all placeholders of `text` in one pass, so that values are never scanned; empty if one is unknown."""
    if otherwise is None and not all(params.get(name) for name in _PLACEHOLDER.findall(text)):
        return ""
    return _PLACEHOLDER.sub(lambda match: params.get(match[1], otherwise or ""), text).strip()

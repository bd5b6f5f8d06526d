"""What is said, in the shop's own words: one table for all channels, from which each takes as much as it can carry.

A text is some paragraphs with gaps. A paragraph with a gap that nothing is known for is left out, so that a notice
whose cause told little says little, and never "None". For `message` title and body are the sender's own.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from notification_service.messages import Template

SMS_CHARACTERS: Final = 320
"""Two short messages' worth."""
TITLE_CHARACTERS: Final = 120


@dataclass(frozen=True, slots=True)
class Text:
    """The title and the paragraphs of one template; the first paragraph says what matters."""

    title: str
    paragraphs: tuple[str, ...]


TEXTS: Final[Mapping[Template, Text]] = {
    "order_confirmed": Text(
        "Your order {order} is confirmed",
        (
            "Thank you: your order is paid, and everything in it is yours.",
            "{lines}",
            "Total: {total}",
            "We tell you when it is on its way.",
        ),
    ),
    "order_cancelled": Text(
        "Your order {order} was cancelled",
        (
            "Your order was cancelled: {why}.",
            "You get {refunded} back, to where it came from.",
            "Nothing of it is on its way to you, and you need not do anything.",
        ),
    ),
    "payment_failed": Text(
        "The payment of your order {order} failed",
        (
            "Your order could not be paid: {why}.",
            "You get {refunded} back, to where it came from.",
            "What you chose is in your cart again for a short while. You may try once more, or with another card.",
        ),
    ),
    "order_refunded": Text(
        "A refund for your order {order}",
        (
            "We have given {amount} back, to where it came from.",
            "All in all that is {refunded} for this order.",
            "Your bank may take some days to show it.",
        ),
    ),
    "order_shipped": Text(
        "Your order {order} is on its way",
        (
            "Your parcel has left us.",
            "{carrier} brings it. Its number is {tracking}.",
        ),
    ),
    "order_delivered": Text(
        "Your order {order} has arrived",
        ("Your parcel was delivered. Enjoy what is in it!",),
    ),
    "cart_expiring": Text(
        "Your cart is about to expire",
        (
            "What is in your cart is held for you until {until} (UTC). After that it goes back on the shelf.",
            "Add something, or check out, to keep it.",
        ),
    ),
    "cart_changed": Text(
        "Your cart has changed",
        (
            "Your cart was changed elsewhere. It is in its version {version} now.",
            "{lines}",
        ),
    ),
    "message": Text("{title}", ("{body}",)),
}

_GAP: Final = re.compile(r"\{(\w+)\}")
_PAGE: Final = """\
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
class Words:
    """A notice as it is said: a title in one line, and the paragraphs that could be filled in."""

    title: str
    paragraphs: tuple[str, ...]

    @property
    def body(self) -> str:
        """The paragraphs as plain text."""
        return "\n\n".join(self.paragraphs)

    @property
    def sms(self) -> str:
        """Title and first paragraph, as much as two short messages hold."""
        whole = ". ".join(part.rstrip(".") for part in (self.title, *self.paragraphs[:1])) + "."
        return whole if len(whole) <= SMS_CHARACTERS else whole[: SMS_CHARACTERS - 1] + "…"

    @property
    def html(self) -> str:
        """A page for a mail reader; whatever came from outside is text in it, never markup."""
        paragraphs = "\n".join(
            f'<p style="margin:0 0 12px">{html.escape(paragraph).replace(chr(10), "<br>")}</p>'
            for paragraph in self.paragraphs
        )
        return _PAGE.format(title=html.escape(self.title), paragraphs=paragraphs)


def words(template: Template, params: Mapping[str, str]) -> Words:
    """What `template` says with `params`; those that it has no gap for are ignored."""
    text = TEXTS[template]
    title = " ".join(_filled(text.title, params, otherwise="").split())[:TITLE_CHARACTERS]
    filled = (_filled(paragraph, params) for paragraph in text.paragraphs)
    return Words(title or "A message for you", tuple(paragraph for paragraph in filled if paragraph))


def gaps(template: Template) -> frozenset[str]:
    """The parameters that a template has a place for."""
    text = TEXTS[template]
    return frozenset(name for part in (text.title, *text.paragraphs) for name in _GAP.findall(part))


def _filled(text: str, params: Mapping[str, str], *, otherwise: str | None = None) -> str:
    """`text` with its gaps filled in one go, so that no value is taken for a gap; empty when one stays open."""
    if otherwise is None and not all(params.get(name) for name in _GAP.findall(text)):
        return ""
    return _GAP.sub(lambda gap: params.get(gap[1], otherwise or ""), text).strip()

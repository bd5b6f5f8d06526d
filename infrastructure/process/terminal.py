"""Text of others on an operator's terminal: characters that would control the terminal are shown as escapes.

A record may contain anything. Control characters (C0 such as ESC, and C1 such as CSI) move the cursor, change colours
or answer on the operator's behalf, and bidirectional controls make a line read as another one.
"""

import re
from typing import Final

_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 except tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks, embeddings, overrides and isolates
    "\u2028\u2029\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"  # invisible, or not encodable
)


def escape_controls(text: str) -> str:
    r"""Return `text` with every character that controls a terminal as in JSON: U+009B becomes `\u009b`.

    Tabs and line feeds stay. Inside a JSON string the escapes mean the same characters, so JSON stays the same value.
    """
    return _CONTROLS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    """Return a character as one or two UTF-16 units."""
    units = match[0].encode("utf-16-be", errors="surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))

"""Charts as hand-written SVG. No I/O.

Two simple kinds of chart do not justify a plotting library of a hundred megabytes, and their text stays readable in a
diff. Both axes of a line chart are logarithmic.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from load.bench.significance import Spread

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 48, 52
COLOURS: Final = ("#0b6e4f", "#c8553d", "#3d5a80", "#8f6fb3", "#a07000", "#555555")
_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#222}.t{font-size:16px;font-weight:600}.g{stroke:#ddd}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#444}}"
)


def render_line_chart(title: str, x: str, y: str, series: Mapping[str, Sequence[tuple[float, Spread]]]) -> str:
    """Return a line chart with one line per series and the range of each point; values not above 0 are omitted."""
    points = {name: [(at, spread) for at, spread in each if at > 0 and spread.low > 0] for name, each in series.items()}
    xs = [at for each in points.values() for at, _ in each]
    ys = [value for each in points.values() for _, spread in each for value in (spread.low, spread.high)]
    if not xs:
        return _page(title, [])
    across, up = _Scale(xs, LEFT, WIDTH - RIGHT), _Scale(ys, HEIGHT - BOTTOM, TOP)
    parts = [_text(LEFT, HEIGHT - 12, x), _text(8, TOP - 12, y)]
    for value in across.ticks():
        parts.append(_rule(across(value), TOP, across(value), HEIGHT - BOTTOM))
        parts.append(_text(across(value), HEIGHT - BOTTOM + 18, _number(value), "middle"))
    for value in up.ticks():
        parts.append(_rule(LEFT, up(value), WIDTH - RIGHT, up(value)))
        parts.append(_text(LEFT - 8, up(value) + 4, _number(value), "end"))
    for number, (name, each) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across(at):.1f},{up(spread.median):.1f}" for at, spread in each)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for at, spread in each:
            parts.append(
                f'<line x1="{across(at):.1f}" y1="{up(spread.low):.1f}" x2="{across(at):.1f}" '
                f'y2="{up(spread.high):.1f}" stroke="{colour}"/>'
            )
            parts.append(f'<circle cx="{across(at):.1f}" cy="{up(spread.median):.1f}" r="3.5" fill="{colour}"/>')
        parts += _key(number, name, colour)
    return _page(title, parts)


def render_bar_chart(title: str, unit: str, groups: Mapping[str, Mapping[str, Spread]]) -> str:
    """Return a bar chart with a group of bars for each label and one bar per side, with its range, from zero."""
    sides = list(dict.fromkeys(side for each in groups.values() for side in each))
    most = max((spread.high for each in groups.values() for spread in each.values()), default=0.0) or 1.0
    group_width = (WIDTH - RIGHT - LEFT) / max(1, len(groups))
    parts = [_text(8, TOP - 12, unit)]

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / most

    for quarter in range(5):
        value = most * quarter / 4
        parts.append(_rule(LEFT, up(value), WIDTH - RIGHT, up(value)))
        parts.append(_text(LEFT - 8, up(value) + 4, _number(value), "end"))
    for position, (label, each) in enumerate(groups.items()):
        left_edge, group_bars = LEFT + group_width * (position + 0.1), group_width * 0.8 / max(1, len(sides))
        parts.append(_text(LEFT + group_width * (position + 0.5), HEIGHT - BOTTOM + 18, label, "middle"))
        for side, spread in each.items():
            left, colour = left_edge + group_bars * sides.index(side), COLOURS[sides.index(side) % len(COLOURS)]
            top, middle = up(spread.median), left + group_bars * 0.45
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{group_bars * 0.9:.1f}" height="{up(0) - top:.1f}" '
                f'fill="{colour}"/><line x1="{middle:.1f}" y1="{up(spread.low):.1f}" x2="{middle:.1f}" '
                f'y2="{up(spread.high):.1f}" stroke="#888"/>'
            )
    for number, side in enumerate(sides):
        parts += _key(number, side, COLOURS[number % len(COLOURS)])
    return _page(title, parts)


class _Scale:
    """Logarithmic scale over the decades that contain all values."""

    def __init__(self, values: Sequence[float], left_edge: float, end: float) -> None:
        self.low = math.floor(math.log10(min(values)))
        self.high = max(self.low + 1, math.ceil(math.log10(max(values))))
        self._begin, self._end = left_edge, end

    def __call__(self, value: float) -> float:
        return self._begin + (self._end - self._begin) * (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def _page(title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style>'
    )
    return "\n".join([head, _text(LEFT, 22, title, kind="t"), *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="g" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _key(number: int, name: str, colour: str) -> list[str]:
    y = TOP + 8 + 22 * number
    x = WIDTH - RIGHT + 14
    return [f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>', _text(x + 18, y, name)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"  # noqa: PLR2004 - two digits are enough

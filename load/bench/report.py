"""Write `docs/performance/`: raw records, and tables and charts made from them.

All pages are rewritten from all records in the folder, so that one experiment can be repeated by itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from load.bench import chart
from load.bench.experiments import EXPERIMENTS
from load.bench.opponents import DBOS, RESTATE
from load.bench.rounds import OURS, BarChart, Experiment, LineChart, Record, Row, compute_ratio, summarize_figure
from load.bench.significance import Inconclusive, Ratio, Spread, slope
from load.bench.steadiness import warm_up_sentence
from load.bench.targets import PLAIN

HEAD: Final = """# Performance

Written by `holdfast bench`: [how it measures and how to read it](../load.md#how-holdfast-bench-measures). Each number
is the median of interleaved rounds, with the range over them in brackets; each ratio is the median of the ratios of
single rounds. Where a ratio could not be trusted, the table has the reason instead. Absolute numbers are valid for this
machine and this hour only; ratios are more portable.
"""
LAWS: Final = {
    "catalogue_hold": "a hold by size of the catalogue",
    "carts_hold": "a hold by number of live carts",
    "history_hold": "a hold by length of history",
    "catalogue_back": "the inventory worker's restart by size of the catalogue",
    "carts_back": "the cart worker's restart by number of live carts",
    "history_back": "the cart worker's restart by length of history",
}


def save(folder: Path, record: Record) -> Path:
    """Save one record and return its path."""
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    file = raw / f"{record['experiment']}.json"
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def write(folder: Path) -> Path:
    """Write the page and the charts of all records in `folder`, and return the path of the page."""
    files = {name: folder / "raw" / f"{name}.json" for name in EXPERIMENTS}
    records = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}
    sections = [HEAD]
    if sentences := meaning(records):
        sections += ["## Meaning for a user", "", " ".join(sentences), ""]
    for name, record in records.items():
        sections += _section(EXPERIMENTS[name], record)
        for file_name, svg in charts(EXPERIMENTS[name], record):
            (folder / file_name).write_text(svg, encoding="utf-8")
    page = folder / "README.md"
    page.write_text("\n".join(sections), encoding="utf-8")
    return page


def meaning(records: Mapping[str, Record]) -> list[str]:
    """Return sentences for a user about the main figures, one side beside the other, for the records that exist."""

    def figure(experiment: str, name: str, unit: str, side: str = OURS) -> str | None:
        record = records.get(experiment)
        found = summarize_figure(record, side, name) if record is not None else None
        return None if found is None else f"{_number(found.median)}{unit}"

    sentences: list[str] = []

    def say(sentence: str, **values: str | None) -> None:
        if all(value is not None for value in values.values()):
            sentences.append(sentence.format(**values))

    say(
        "At 100 requests per second a shopper waits {p50} for the outcome of an add, and one in a hundred waits {p99} "
        "or longer.",
        p50=figure("latency", "p50@100", " ms"),
        p99=figure("latency", "p99@100", " ms"),
    )
    say(
        "A plain FastAPI service with one statement in Postgres answers in {plain}: it has no broker to pass, and it "
        "is the better choice where one database and one service are enough.",
        plain=figure("latency", "p50@100", " ms", PLAIN),
    )
    say(
        "Saturated, the shop answers {ours} requests per second, and the plain service {plain}.",
        ours=figure("limits", "saturation", ""),
        plain=figure("limits", "saturation", "", PLAIN),
    )
    for other in (DBOS, RESTATE):
        say(
            f"Beside {other}, which also survives crashes and never oversells, the median at 100/s is {{ours}} to "
            "{theirs}, and the saturated throughput {ours_most} to {theirs_most} per second.",
            ours=figure("opponents", "p50@100", " ms"),
            theirs=figure("opponents", "p50@100", " ms", other),
            ours_most=figure("opponents", "saturation", ""),
            theirs_most=figure("opponents", "saturation", "", other),
        )
    say(
        "What the shop costs is more processes: at rest, the whole of it takes {memory} of memory and {cpu} of a core, "
        "and a start takes {up}.",
        memory=figure("start", "memory_total", " MiB"),
        cpu=figure("start", "rest_total", " %"),
        up=figure("start", "up_s", " s"),
    )
    say(
        "In the first seconds after a start it is slower: p99 is {first} instead of {warm}.",
        first=figure("start", "first_p99", " ms"),
        warm=figure("start", "warm_p99", " ms"),
    )
    return sentences


def summary(experiment: Experiment, record: Record) -> dict[str, Any]:
    """Return a record as JSON values: median and range of each side by row, and the ratio or why there is none."""
    rows = []
    for row in _rows_with_figures(experiment, record):
        compared = compute_ratio(record, row)
        result: dict[str, Any] = {"figure": row.figure, "label": row.label, "unit": row.unit, "base": row.base}
        result["sides"] = {
            side: _json(found) for side in _sides(record) if (found := summarize_figure(record, side, row.figure))
        }
        if isinstance(compared, Ratio):
            result["ratio"] = {**_json(compared.spread), "pairs": compared.pairs, "dropped": compared.dropped}
        elif isinstance(compared, Inconclusive):
            result["untrusted"] = compared.reason
        rows.append(result)
    return {"title": experiment.title, "rounds": len(record["rounds"]), "rows": rows}


def table(experiment: Experiment, record: Record) -> list[str]:
    """Return the lines of a Markdown table."""
    sides = _sides(record)
    lines = [f"| | {' | '.join(sides)} | ratio |", "|---|" + "---:|" * len(sides) + "---|"]
    for row in _rows_with_figures(experiment, record):
        cells = [_cell(summarize_figure(record, side, row.figure), row.unit) for side in sides]
        lines.append(f"| {row.label} | {' | '.join(cells)} | {_ratio(compute_ratio(record, row), row)} |")
    return lines


def tables(experiment: Experiment, record: Record) -> list[str]:
    """Return the lines of all Markdown tables: of the figures by side, and of the processes."""
    breakdown = _breakdown(experiment, record)
    return [*table(experiment, record), *(["", *breakdown] if breakdown else [])]


def _breakdown(experiment: Experiment, record: Record) -> list[str]:
    """Return a table with a row per process, largest first; empty if there are no such figures."""
    if experiment.breakdown is None:
        return []
    columns = experiment.breakdown.columns
    known = {figure for each in record["rounds"] for figure in each["sides"].get(OURS, {"figures": {}})["figures"]}
    names = {figure.partition(".")[2] for figure in known if figure.partition(".")[0] in {each[0] for each in columns}}
    if not names - {""}:
        return []

    def size(name: str) -> float:
        found = summarize_figure(record, OURS, f"{columns[0][0]}.{name}")
        return found.median if found else 0.0

    lines = [f"| process | {' | '.join(heading for _, heading, _ in columns)} |", "|---|" + "---:|" * len(columns)]
    for name in sorted(names - {""}, key=lambda name: (-size(name), name)):
        cells = [_cell(summarize_figure(record, OURS, f"{figure}.{name}"), unit) for figure, _, unit in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def charts(experiment: Experiment, record: Record) -> Iterator[tuple[str, str]]:
    """Yield the file name and text of each chart."""
    for each in experiment.charts:
        if isinstance(each, LineChart):
            series = {
                f"{side} {name}" if len(_sides(record)) > 1 else name.replace("_", " "): points
                for side in each.sides or _sides(record)
                for name in each.names
                if (points := _points(record, side, name))
            }
            yield each.file, chart.render_line_chart(each.title, each.x, each.y, series)
        elif isinstance(each, BarChart):
            groups = {
                label: {side: found for side in _sides(record) if (found := summarize_figure(record, side, figure))}
                for figure, label in each.figures
            }
            yield each.file, chart.render_bar_chart(each.title, each.unit, groups)


def _section(experiment: Experiment, record: Record) -> list[str]:
    rounds, machine = record["rounds"], record["machine"]
    loads = [load for each in rounds for load in each["load"]]
    warm_up = warm_up_sentence(record.get("warm_up", {}), experiment.steadiness)
    driver = f"; driver: its own process, {record['driver']}" if record.get("driver") else ""
    quick = " **A smoke test: its numbers are meaningless.**" if record["options"]["quick"] else ""
    return [
        f"## {experiment.title}",
        "",
        f"{experiment.text}{quick}",
        "",
        *tables(experiment, record),
        "",
        *(f"![{each.title}]({each.file})\n" for each in experiment.charts),
        *_slopes(record),
        *([warm_up, ""] if warm_up else []),
        *(f"{sentence}\n" for sentence in record.get("skipped", ())),
        (
            f"{len(rounds)} rounds, {record['options']['seconds']:g} s per measurement, {record['at']}; load average "
            f"{min(loads, default=0):g} to {max(loads, default=0):g}; {machine['cpus']} CPUs ({machine['cpu']}), "
            f"{machine['memory_gib']:g} GiB, {machine['system']}, Python {machine['python']}{driver}. "
            f"Raw: [{experiment.name}.json](raw/{experiment.name}.json)."
        ),
        "",
    ]


def _slopes(record: Record) -> list[str]:
    slopes = []
    for law, title in LAWS.items():
        found = slope([(at, spread.median) for at, spread in _points(record, OURS, law)])
        if found is not None:
            slopes.append(f"{title} {found:.2f}")
    return [f"Log-log slopes (0: constant, 1: linear): {'; '.join(slopes)}.\n"] if slopes else []


def _points(record: Record, side: str, name: str) -> list[tuple[float, Spread]]:
    """Return the figures `name@x` of a side, by x."""
    known = {figure for each in record["rounds"] for figure in each["sides"].get(side, {"figures": {}})["figures"]}
    sizes = sorted(float(figure.partition("@")[2]) for figure in known if figure.startswith(f"{name}@"))
    return [(size, found) for size in sizes if (found := summarize_figure(record, side, f"{name}@{size:g}"))]


def _rows_with_figures(experiment: Experiment, record: Record) -> Sequence[Row]:
    """Return the rows that have a figure. A quick run has other sizes, so all its figures are added."""
    sides = _sides(record)
    with_figures = [row for row in experiment.rows if any(summarize_figure(record, side, row.figure) for side in sides)]
    listed = {row.figure for row in with_figures}
    known = {figure for each in record["rounds"] for side in each["sides"].values() for figure in side["figures"]}
    by_process = {figure for figure in known if "." in figure}
    return [
        *with_figures,
        *(Row(figure, figure, "") for figure in sorted(known - listed - by_process) if record["options"]["quick"]),
    ]


def _sides(record: Record) -> list[str]:
    return list(dict.fromkeys(side for each in record["rounds"][:1] for side in each["order"]))


def _json(found: Spread) -> Mapping[str, float]:
    return {"median": found.median, "low": found.low, "high": found.high}


def _cell(found: Spread | None, unit: str) -> str:
    if found is None:
        return "-"
    text = f"{_number(found.median)} {unit}".strip()
    return text if found.low == found.high else f"{text} ({_number(found.low)}–{_number(found.high)})"  # noqa: RUF001 - a range


def _ratio(compared: Ratio | Inconclusive | None, row: Row) -> str:
    if compared is None:
        return ""
    if isinstance(compared, Inconclusive):
        return f"{compared.reason} ({row.base})"
    found = compared.spread
    dropped = f", {compared.dropped} dropped" if compared.dropped else ""
    return f"**{found.median:.2f}** × {row.base} ({found.low:.2f}–{found.high:.2f}; {compared.pairs} pairs{dropped})"  # noqa: RUF001 - times, a range


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits are enough

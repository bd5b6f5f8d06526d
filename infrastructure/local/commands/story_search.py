"""Search for everything that happened to one order, request or shopper. Pure.

A search starts with one id. The records that contain it name other ids, and the search follows those that belong to
the same matter: traces, orders, and requests of the same shopper. It never follows a shopper's id, because that would
lead from one order to everything else that the shopper did.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from contracts.envelope import rfc3339
from contracts.ids import derive_id
from contracts.trace_context import trace_id

MAX_IDS: Final = 500
"""Ids that a search follows at most."""
MAX_STEPS: Final = 5000
"""Steps that a story has at most; the first ones are kept."""
SUMMARY_LENGTH: Final = 160
"""Characters of a summary."""
TYPE_PREFIX: Final = "holdfast."
_HIDDEN: Final = frozenset({"user_id", "order_id", "address", "contact", "payment", "email", "phone", "token"})
"""Fields that a summary leaves out: ids that the line has already, and personal data."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened: a record of a topic, a line of a log, or a mail."""

    time: datetime
    place: str
    """Where it was found: `topic 3@17`, `log cart-1`, `mail 4`."""
    type: str
    who: str
    """The service that said it."""
    subject: str = ""
    request_id: str = ""
    trace: str = ""
    summary: str = ""
    ids: frozenset[str] = frozenset()
    """All strings in it that may be an id, whole and in their parts between slashes."""
    data: Mapping[str, Any] | None = None
    """The whole content, for `--json`."""

    def field(self, name: str) -> str:
        """Return a text field of the event's data, empty if it has none of this name."""
        data = self.data.get("data") if self.data else None
        value = data.get(name) if isinstance(data, dict) else None
        return value if isinstance(value, str) else ""

    @property
    def user(self) -> str:
        """The shopper whom it is about, empty if unknown."""
        return self.field("user_id") or ("" if self.field("order_id") else self.subject)

    def as_json(self) -> dict[str, Any]:
        """Return the step as JSON values."""
        return {
            "time": rfc3339(self.time),
            "place": self.place,
            "type": self.type,
            "who": self.who,
            "subject": self.subject,
            "request_id": self.request_id or None,
            "trace": self.trace or None,
            "summary": self.summary,
            "content": self.data,
        }


@dataclass(slots=True)
class Search:
    """Search that begins with the id `wanted`."""

    wanted: str
    others: set[str] = field(default_factory=set)
    """Traces and orders that belong to the matter."""
    orders: set[str] = field(default_factory=set)
    """Orders that the records name, also those of a shopper's story: logs and mails may name only the order."""
    requests: set[tuple[str, str]] = field(default_factory=set)
    """Requests that belong to the matter, as shopper and request id; request ids alone are not unique."""
    steps: dict[str, Step] = field(default_factory=dict)
    """The steps that were found, by place."""
    is_about_user: bool = False
    """True if the wanted id is a shopper's: all of the shopper's records contain it, so nothing is followed."""
    is_cut: bool = False
    """True if there was more than the search may follow or keep."""

    def needles(self) -> list[bytes]:
        """Return byte strings of which a matching record has at least one: a quick test before it is decoded."""
        ids = {self.wanted, *self.others, *(request for _, request in self.requests)}
        return sorted({form.encode() for id_ in ids for form in _json_forms(id_)})

    def matches(self, step: Step) -> bool:
        """Return whether the step belongs to the matter."""
        if self.wanted in step.ids or not self.others.isdisjoint(step.ids):
            return True
        return bool(step.request_id) and (step.user, step.request_id) in self.requests

    def add(self, step: Step) -> bool:
        """Keep a record that belongs to the matter, and follow its ids; return whether it led to new ids."""
        if step.place in self.steps or not self.matches(step) or not self._keep(step):
            return False
        return self._follow(step)

    def add_unfollowed(self, step: Step) -> None:
        """Keep a line of a log or a mail that names an id of the matter."""
        if not step.ids.isdisjoint(self.local_ids()):
            self._keep(step)

    def local_ids(self) -> set[str]:
        """Return the ids under which logs and mails are searched."""
        return {self.wanted} | self.others | self.orders

    def _keep(self, step: Step) -> bool:
        if len(self.steps) >= MAX_STEPS:
            self.is_cut = True
            return False
        self.steps[step.place] = step
        return True

    def _follow(self, step: Step) -> bool:
        order = step.field("order_id")
        if order and len(self.orders) < MAX_IDS:
            self.orders.add(order)
        self.is_about_user = self.is_about_user or self.wanted == step.field("user_id")
        if self.is_about_user:
            return False
        before = len(self.others) + len(self.requests)
        if before >= MAX_IDS:
            self.is_cut = True
            return False
        self.others |= {step.trace, order} - {""}
        for request in {step.request_id, step.field("request_id")} - {""}:
            if "/" not in request and step.user:  # a command of an order has an id such as ORDER/sell
                self.requests.add((step.user, request))
                self.others.add(derive_id(step.user, request, "order"))
        return len(self.others) + len(self.requests) > before

    def story(self, user: str | None = None) -> list[Step]:
        """Return the steps in order of time, or only those of one shopper and of the shopper's orders."""
        steps = sorted(self.steps.values(), key=lambda step: (step.time, step.place))
        if user is None:
            return steps
        theirs = {step.field("order_id") for step in steps if step.user == user} - {""} | {user}
        return [step for step in steps if step.user == user or (not step.user and not theirs.isdisjoint(step.ids))]

    def shoppers(self) -> list[str]:
        """Return the shoppers who used the wanted id as the id of a request."""
        return sorted({step.user for step in self.steps.values() if step.request_id == self.wanted and step.user})


def _json_forms(id_: str) -> Iterator[str]:
    """Yield an id as JSON may write it, with and without escapes."""
    yield json.dumps(id_)[1:-1]
    yield json.dumps(id_, ensure_ascii=False)[1:-1]


def strings(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, and the parts of those with slashes."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, str):
            yield each
            if "/" in each:
                yield from each.split("/")
        elif isinstance(each, dict):
            pending.extend(each.values())
        elif isinstance(each, list):
            pending.extend(each)


def record_step(place: str, recorded_at: datetime, key: str, content: Any, raw: str, inner: str = "") -> Step:
    """Return the step of a record.

    `content` is its JSON value, and `raw` its text, which is shown if it is not an event. `inner` is the text of the
    record that a dead letter contains.
    """
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        ids = frozenset({*strings(content), *strings(key), *words(raw)})
        return Step(recorded_at, place, "not an event", "?", subject=key, summary=_shorten(raw), ids=ids)
    trace = trace_id(content["traceparent"]) if isinstance(content.get("traceparent"), str) else ""
    return Step(
        time=recorded_at,
        place=place,
        type=content["type"].removeprefix(TYPE_PREFIX),
        who=str(content.get("source", "?")),
        subject=str(content.get("subject", key)),
        request_id=str(content.get("requestid") or ""),
        trace=trace,
        summary=summarize(content.get("data")),
        ids=frozenset({*strings(content), *strings(key), *strings(_parsed(inner)), trace} - {""}),
        data=content,
    )


def words(text: str) -> Iterator[str]:
    """Yield the words of a text that is not JSON: the parts between characters that no id contains."""
    yield from re.split(r"[^A-Za-z0-9_.:-]+", text)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return list(words(text))


def summarize(data: Any) -> str:
    """Return the content of an event in one short line, without personal data."""
    if not isinstance(data, dict):
        return "" if data is None else _shorten(json.dumps(data, ensure_ascii=False))
    return _shorten(" ".join(_field(name, value) for name, value in data.items() if name not in _HIDDEN))


def _field(name: str, value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"amount", "currency"}:
        return f"{name}={value['amount']} {value['currency']}"
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        return f"{name}={value['type']} ({summarize({k: v for k, v in value.items() if k != 'type'})})"
    if isinstance(value, list):
        return f"{name}=[{len(value)}]"
    if isinstance(value, dict):
        return f"{name}={{{', '.join(value)}}}"
    return f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def _shorten(text: str) -> str:
    line = "".join(each if each.isprintable() else " " for each in text)
    return line if len(line) <= SUMMARY_LENGTH else f"{line[: SUMMARY_LENGTH - 1]}…"


def log_step(place: str, line: str, ids: Iterable[str]) -> Step | None:
    """Return the step of a log line that contains one of `ids`; `None` if it contains none, or is not a JSON object."""
    found = frozenset(id_ for id_ in ids if id_ in line)
    if not found:
        return None
    try:
        entry = json.loads(line)
        time = datetime.fromisoformat(entry["time"])
    except (ValueError, KeyError, TypeError):
        return None
    known = {"time", "level", "service", "replica", "logger", "message", "exception"}
    extra = " ".join(_field(name, value) for name, value in entry.items() if name not in known)
    summary = _shorten(f"{entry.get('message', '')} {extra}".strip())
    who = str(entry.get("replica", "?"))
    return Step(time, place, str(entry.get("level", "?")), who, summary=summary, ids=found, data=entry)


def mail_step(mail: Mapping[str, Any]) -> Step | None:
    """Return the step of a mail in the local mailbox; `None` if its time cannot be read."""
    try:
        time = datetime.fromisoformat(str(mail["received_at"]))
    except (ValueError, KeyError):
        return None
    ids = frozenset({*strings([mail.get("cause"), mail.get("message_id")]), *str(mail.get("text", "")).split()})
    summary = _shorten(f"{mail.get('subject')} (cause {mail.get('cause')})")
    return Step(time, f"mail {mail.get('number')}", "mail", "mailbox", summary=summary, ids=ids, data=dict(mail))

"""The metric vocabulary: every metric of every service stands here, so that one name means one thing."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_HOP: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100)

# ---- records: what every agent does with what it reads --------------------------------------------------------------

RECORDS: Final = Counter("holdfast_records_total", "records handled, by topic and type", ["topic", "type"])
BATCH_SIZE: Final = Histogram("holdfast_batch_size", "records in one batch", ["topic"], buckets=_SIZES)
BATCH_SECONDS: Final = Histogram("holdfast_batch_seconds", "time to handle one batch", ["topic"], buckets=_HOP)
RETRIES: Final = Counter("holdfast_retries_total", "attempts that failed and were made again", ["topic", "error"])
DEAD_LETTERS: Final = Counter("holdfast_dead_letters_total", "records put aside", ["topic", "reason"])
IGNORED: Final = Counter("holdfast_ignored_total", "records of a type this version does not know", ["topic"])
REPARTITIONED: Final = Counter(
    "holdfast_repartitioned_total", "records found on a wrong partition, sent again", ["topic"]
)
UP: Final = Gauge("holdfast_ready", "1 when the process is ready for work")

# ---- inventory: crowd locks, stock and expiry -----------------------------------------------------------------------

LOCKS: Final = Counter("holdfast_locks_total", "crowd locks by what came of asking: held, crowded, away", ["result"])
LOCK_SECONDS: Final = Histogram("holdfast_lock_seconds", "time spent asking for crowd locks", buckets=_HOP)
OUTCOMES: Final = Counter("holdfast_outcomes_total", "what requests came to", ["outcome", "reason"])
DUPLICATES: Final = Counter("holdfast_duplicates_total", "requests that had been decided before")
KNOCKS: Final = Counter("holdfast_expiry_knocks_total", "knocks sent for carts that were due")
PUBLISHED: Final = Counter("holdfast_published_total", "states of products published", ["topic"])
TRIMMED: Final = Counter("holdfast_trimmed_total", "old rows taken out of the request log")

# ---- pumps: rows worked off beside the agents, and the breakers in front of what is slow -----------------------------

PUMPED: Final = Counter("holdfast_pumped_total", "attempts at rows, by what came of them", ["pump", "result"])
PUMP_SECONDS: Final = Histogram("holdfast_pump_seconds", "time of one attempt at a row", ["pump"], buckets=_HOP)
BREAKER: Final = Gauge("holdfast_breaker_state", "0 closed, 1 half-open, 2 open", ["breaker"])

# ---- insights: the shop's business, each thing counted once ----------------------------------------------------------

BUSINESS: Final = Counter("holdfast_business_total", "what happened in the shop, by figure", ["figure"])
BUSINESS_MONEY: Final = Counter(
    "holdfast_business_money_total", "minor units ordered, captured and refunded", ["figure", "currency"]
)
INSIGHTS_REPEATED: Final = Counter("holdfast_insights_repeated_total", "events that had been counted before")
INSIGHTS_TOO_LATE: Final = Counter(
    "holdfast_insights_too_late_total", "events older than their topic keeps any, not counted"
)

# ---- the edge -------------------------------------------------------------------------------------------------------

EDGE_SOCKETS: Final = Gauge("holdfast_edge_sockets", "open WebSockets")
EDGE_FRAMES_IN: Final = Counter("holdfast_edge_frames_in_total", "frames received")
EDGE_FRAMES_OUT: Final = Counter("holdfast_edge_frames_out_total", "frames sent")
EDGE_CLOSES: Final = Counter("holdfast_edge_closes_total", "sockets that the server closed, by code", ["code"])
EDGE_OUTCOME_SECONDS: Final = Histogram(
    "holdfast_edge_outcome_seconds", "from a request's acceptance to its outcome at the edge", buckets=_HOP
)
EDGE_UNACKNOWLEDGED: Final = Counter(
    "holdfast_edge_unacknowledged_total", "requests that Kafka did not confirm in time"
)
EDGE_REQUESTS: Final = Counter(
    "holdfast_edge_http_requests_total", "HTTP requests, by method and status", ["method", "status"]
)
EDGE_REQUEST_SECONDS: Final = Histogram(
    "holdfast_edge_http_request_seconds", "time to answer an HTTP request", ["method"], buckets=_HOP
)
EDGE_PROJECTED: Final = Counter("holdfast_edge_projected_total", "records taken into the read model", ["topic"])

# ---- orders ---------------------------------------------------------------------------------------------------------

ORDER_EVENTS: Final = Counter("holdfast_order_events_total", "what became of orders", ["event", "reason"])

# ---- the audit that goes on beside the shop: exported by the one process that does it --------------------------------

AUDIT_VIOLATIONS: Final = Gauge("holdfast_audit_violations", "what the last audit found wrong", ["service"])
AUDIT_AGE: Final = Gauge("holdfast_audit_age_seconds", "time since the last audit ended", ["service"])
AUDIT_SECONDS: Final = Gauge("holdfast_audit_duration_seconds", "how long the last audit took", ["service"])

# ---- notices --------------------------------------------------------------------------------------------------------

NOTICES: Final = Counter("holdfast_notices_total", "what notices came to: sent, failed, skipped", ["channel", "status"])

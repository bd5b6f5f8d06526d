"""Metrics of all services, defined in one place so that each name has one meaning."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_HOP: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100)

# ---- records: processing of topics ----------------------------------------------------------------------------------

RECORDS: Final = Counter("holdfast_records_total", "records handled, by topic and type", ["topic", "type"])
BATCH_SIZE: Final = Histogram("holdfast_batch_size", "records in one batch", ["topic"], buckets=_SIZES)
BATCH_SECONDS: Final = Histogram("holdfast_batch_seconds", "time to handle one batch", ["topic"], buckets=_HOP)
RETRIES: Final = Counter("holdfast_retries_total", "attempts that failed and were retried", ["topic", "error"])
DEAD_LETTERS: Final = Counter("holdfast_dead_letters_total", "records dead-lettered", ["topic", "reason"])
DEAD_LETTER_PAUSED: Final = Gauge(
    "holdfast_dead_letter_paused", "1 while records are held at the dead-letter limit", ["topic"]
)
IGNORED: Final = Counter("holdfast_ignored_total", "records of a type that this version does not know", ["topic"])
REPARTITIONED: Final = Counter(
    "holdfast_repartitioned_total", "records found on a wrong partition and sent to their own", ["topic"]
)
READY: Final = Gauge("holdfast_ready", "1 when the process is ready for work")

# ---- inventory: contention locks, stock and expiry ------------------------------------------------------------------

LOCKS: Final = Counter(
    "holdfast_locks_total", "attempts to take contention locks by result: held, crowded, away", ["result"]
)
LOCK_SECONDS: Final = Histogram("holdfast_lock_seconds", "time spent waiting for contention locks", buckets=_HOP)
OUTCOMES: Final = Counter("holdfast_outcomes_total", "requests by outcome", ["outcome", "reason"])
DUPLICATES: Final = Counter("holdfast_duplicates_total", "requests that were decided before")
EXPIRY_REQUESTS: Final = Counter("holdfast_expiry_knocks_total", "expiry requests sent for due carts")
PUBLISHED: Final = Counter("holdfast_published_total", "states of products published", ["topic"])
TRIMMED: Final = Counter("holdfast_trimmed_total", "old rows deleted from the request log")

# ---- job queues, and the circuit breakers in front of slow dependencies ----------------------------------------------

JOB_ATTEMPTS: Final = Counter("holdfast_pumped_total", "attempts at rows by result", ["pump", "result"])
JOB_SECONDS: Final = Histogram("holdfast_pump_seconds", "time of one attempt at a row", ["pump"], buckets=_HOP)
BREAKER: Final = Gauge("holdfast_breaker_state", "0 closed, 1 half-open, 2 open", ["breaker"])

# ---- insights: business figures, each event counted once -------------------------------------------------------------

BUSINESS: Final = Counter("holdfast_business_total", "business events by figure", ["figure"])
BUSINESS_MONEY: Final = Counter(
    "holdfast_business_money_total", "minor units ordered, captured and refunded", ["figure", "currency"]
)
INSIGHTS_REPEATED: Final = Counter("holdfast_insights_repeated_total", "events that were counted before")
INSIGHTS_TOO_LATE: Final = Counter(
    "holdfast_insights_too_late_total", "events older than their topic's retention, not counted"
)

# ---- the edge -------------------------------------------------------------------------------------------------------

EDGE_SOCKETS: Final = Gauge("holdfast_edge_sockets", "open WebSockets")
EDGE_CONNECTIONS: Final = Gauge("holdfast_edge_connections", "open connections, WebSockets included")
EDGE_CONNECTIONS_REFUSED: Final = Counter(
    "holdfast_edge_connections_refused_total",
    "connections refused for want of room, by limit: full, address",
    ["limit"],
)
EDGE_CONNECTIONS_CUT: Final = Counter(
    "holdfast_edge_connections_cut_total",
    "connections that the server ended before the client did, by phase at the deadline, or room, surplus",
    ["reason"],
)
EDGE_FRAMES_IN: Final = Counter("holdfast_edge_frames_in_total", "frames received")
EDGE_FRAMES_OUT: Final = Counter("holdfast_edge_frames_out_total", "frames sent")
EDGE_CLOSES: Final = Counter("holdfast_edge_closes_total", "sockets that the server closed, by code", ["code"])
EDGE_OUTCOME_SECONDS: Final = Histogram(
    "holdfast_edge_outcome_seconds", "from the acceptance of a request to its outcome at the edge", buckets=_HOP
)
EDGE_UNACKNOWLEDGED: Final = Counter(
    "holdfast_edge_unacknowledged_total", "requests that Kafka did not acknowledge in time"
)
EDGE_REQUESTS: Final = Counter(
    "holdfast_edge_http_requests_total", "HTTP requests, by method and status", ["method", "status"]
)
EDGE_REQUEST_SECONDS: Final = Histogram(
    "holdfast_edge_http_request_seconds", "time to answer an HTTP request", ["method"], buckets=_HOP
)
EDGE_PROJECTED: Final = Counter("holdfast_edge_projected_total", "records applied to a read model", ["topic"])

# ---- orders ---------------------------------------------------------------------------------------------------------

ORDER_EVENTS: Final = Counter("holdfast_order_events_total", "order events", ["event", "reason"])

# ---- background audits: exported by the one process that runs them ---------------------------------------------------

AUDIT_VIOLATIONS: Final = Gauge("holdfast_audit_violations", "violations that the last audit found", ["service"])
AUDIT_AGE: Final = Gauge("holdfast_audit_age_seconds", "time since the last audit ended", ["service"])
AUDIT_SECONDS: Final = Gauge("holdfast_audit_duration_seconds", "duration of the last audit", ["service"])

# ---- notices --------------------------------------------------------------------------------------------------------

NOTICES: Final = Counter("holdfast_notices_total", "notices by result: sent, failed, skipped", ["channel", "status"])

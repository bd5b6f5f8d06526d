"""Table of all experiments: the question, the method, and the ratio that matters."""

from typing import Final

from load.bench.checkout import BARE_CHAIN as HOPS_AND_COMMITS
from load.bench.checkout import RATE, STAGES, checkout_sides
from load.bench.growth import growth_sides
from load.bench.holds import BARE_STATEMENT, STEADINESS, WITHOUT_LOCK, holds_sides, lock_sides
from load.bench.latency import RATES, latency_sides, limits_sides
from load.bench.opponents import DBOS, RESTATE, opponents_sides
from load.bench.opponents import RATES as OPPONENT_RATES
from load.bench.rounds import BarChart, Breakdown, Experiment, LineChart, Row
from load.bench.sockets import sockets_sides
from load.bench.start import start_sides
from load.bench.targets import ECHO, PLAIN

LATENCY: Final = Experiment(
    "latency",
    "Add to cart, at a steady rate",
    "From the intended send time of the frame to its outcome, over a WebSocket. The shop's path is four hops through "
    "Kafka and one transaction; the echo is the same four hops without any work; the plain shop has no broker.",
    latency_sides,
    tuple(
        Row(
            f"{figure}@{rate}", f"{figure} at {rate}/s", "ms", ECHO, is_main_result=rate == RATES[1] and figure == "p50"
        )
        for rate in RATES
        for figure in ("p50", "p99")
    )
    + tuple(
        Row(f"{group}@{rate}", f"CPU of {subject} per request at {rate}/s", "ms", base)
        for rate in RATES[1:]
        for group, subject, base in (
            ("service", "the service itself", ECHO),
            ("kafka", "Kafka", ECHO),
            ("postgres", "Postgres", PLAIN),
        )
    )
    + tuple(Row(f"late@{rate}", f"lateness of the driver, p99 at {rate}/s", "ms") for rate in RATES),
    (LineChart("latency.svg", "Add to cart: latency against rate", ("p50", "p99"), "requests per second", "ms"),),
)

LIMITS: Final = Experiment(
    "limits",
    "The knee, saturation, and overload",
    "The knee is the highest rate with p99 within 50 ms and nothing lost, found by doubling and halving. Saturation is "
    "the goodput with 256 requests in flight. Overload: twice the knee is sent, and goodput is what is still answered.",
    limits_sides,
    (
        Row("knee", "knee", "/s", ECHO, is_main_result=True),
        Row("saturation", "saturation, 256 in flight", "/s", ECHO),
        Row("service_cpu", "CPU of the service itself per request, saturated", "ms", ECHO),
        Row("goodput", "goodput at twice the knee", "/s"),
        Row("goodput_share", "goodput at twice the knee ÷ knee", ""),
        Row("beyond_p99", "p99 at twice the knee", "ms"),
        Row("beyond_lost", "lost at twice the knee", "requests"),
        Row("beyond_errors", "p99 of refusals for lack of capacity", "ms"),
    ),
    (
        BarChart(
            "limits.svg", "Knee and saturation", (("knee", "knee"), ("saturation", "saturation")), "requests per second"
        ),
    ),
)

HOLDS: Final = Experiment(
    "holds",
    "Holds per second",
    "One inventory worker drains a topic filled beforehand, for one hot product and for 10,000 products. The bare "
    "statement is `pgbench` at the best of 1, 4, 8 and 16 connections; the plain shop is saturated over 64 sockets.",
    holds_sides,
    (
        Row("hot", "one hot product", "holds/s", BARE_STATEMENT, is_main_result=True),
        Row("spread", "10,000 products", "holds/s", BARE_STATEMENT, is_main_result=True),
        Row("hot", "one hot product, against the plain shop", "holds/s", PLAIN),
        Row("spread", "10,000 products, against the plain shop", "holds/s", PLAIN),
        Row("hot_best_c", "best number of connections, hot", ""),
        Row("spread_best_c", "best number of connections, spread", ""),
    ),
    (
        BarChart(
            "holds.svg",
            "Holds per second",
            (("hot", "one hot product"), ("spread", "10,000 products")),
            "holds per second",
        ),
    ),
    steadiness=STEADINESS,
)

LOCK: Final = Experiment(
    "lock",
    "The Redis lock, on and off",
    "Two inventory workers drain requests for six units each of one product, so that each batch takes the lock. Row "
    "locks and the CHECK in Postgres decide in both cases.",
    lock_sides,
    (Row("hot", "one hot product, two workers", "holds/s", WITHOUT_LOCK, is_main_result=True),),
    steadiness=STEADINESS,
)

CHECKOUT: Final = Experiment(
    "checkout",
    "Checkout",
    f"From the intended send time of a checkout frame, {RATE} per second over one socket per checkout, to "
    "the frame with the status of its order. The baseline is the hops and commits of that stage, without any work: "
    + "; ".join(f"{each.name} {each.hops} hops through Kafka and {each.commits} commits" for each in STAGES)
    + ". Paid also takes two HTTP requests to the simulated provider.",
    checkout_sides,
    tuple(
        Row(f"{stage.name}_{figure}", f"{stage.name}, {figure}", "ms", HOPS_AND_COMMITS, is_main_result=figure == "p50")
        for stage in STAGES
        for figure in ("p50", "p99")
    ),
    (
        BarChart(
            "checkout.svg",
            "Checkout: time until an order is …",
            tuple((f"{stage.name}_p50", stage.name) for stage in STAGES),
            "ms, p50",
        ),
    ),
)

SOCKETS: Final = Experiment(
    "sockets",
    "Sockets",
    "Resident memory of the edge above that of the idle process, per open socket, and the time until one change of "
    "stock has reached all watchers of the product. Changes are sent at most four times per second, so up to 250 ms "
    "are by design.",
    sockets_sides,
    (
        Row("kib@1000", "KiB per socket, at 1,000", "KiB", PLAIN),
        Row("kib@10000", "KiB per socket, at 10,000", "KiB", PLAIN, is_main_result=True),
        Row("push_ms", "one change of stock at the last of 10,000 watchers", "ms"),
        Row("push_cpu_ms", "CPU of the edge for one change", "ms"),
    ),
)

GROWTH: Final = Experiment(
    "growth",
    "Growth",
    "The time of one hold while a full topic is drained, and the time until a worker is ready again: the inventory "
    "worker until its first answer, the cart worker, killed with SIGKILL, until its table is restored.",
    growth_sides,
    tuple(
        Row(f"{law}_{name}@{size}", f"{title} {size:,}: {label}", unit)
        for law, title, sizes in (
            ("catalogue", "products", (100, 10_000, 100_000)),
            ("carts", "live carts", (100, 1_000, 10_000)),
            ("history", "events of 1,000 carts", (1_000, 10_000, 50_000)),
        )
        for name, label, unit in (("hold", "a hold", "µs"), ("back", "ready again", "s"))
        for size in sizes
    ),
    (
        LineChart(
            "growth-hold.svg",
            "Time of a hold by size",
            ("catalogue_hold", "carts_hold", "history_hold"),
            "products, carts, events",
            "µs",
        ),
        LineChart(
            "growth-back.svg",
            "Time until ready again by size",
            ("catalogue_back", "carts_back", "history_back"),
            "products, carts, events",
            "s",
        ),
    ),
    once=True,
)

START: Final = Experiment(
    "start",
    "Start, rest, and the first seconds",
    "The whole shop, all services and servers, as `holdfast up` starts it on data that is already there. Ready is when "
    "`up --detach` returns. The first load, 100 changes per second, begins as soon as the shop is ready; the same load "
    "is repeated when two consecutive windows agree. Memory has shared pages divided among their users (PSS).",
    start_sides,
    (
        Row("up_s", "`up` until ready", "s", is_main_result=True),
        *(
            Row(f"{when}_p{percentile}", f"p{percentile} at 100/s, {label}", unit)
            for percentile in (50, 90, 99)
            for when, label, unit in (
                ("first", "directly after the start", "ms"),
                ("warm", "when warm", "ms"),
                ("ratio", "after the start ÷ when warm", ""),
            )
        ),
        Row("first_lost", "lost directly after the start", "requests"),
        Row("warm_windows", "windows of load until warm", ""),
        Row("memory_total", "memory of all processes at rest", "MiB"),
        Row("after_total", "memory of all processes after load", "MiB"),
        Row("rest_total", "CPU of all processes at rest", "% of a core"),
        Row("rest_own", "CPU of our own processes at rest", "% of a core"),
        Row("request_total", "CPU of all processes per request at 100/s", "ms"),
        Row("request_own", "CPU of our own processes per request at 100/s", "ms"),
        Row("saturated_total", "CPU of all processes per request, saturated", "ms"),
        Row("saturated_own", "CPU of our own processes per request, saturated", "ms"),
        Row("saturation", "saturation, 256 in flight", "/s"),
        Row("late", "lateness of the driver, p99", "ms"),
    ),
    breakdown=Breakdown(
        (
            ("memory", "memory at rest", "MiB"),
            ("rest", "CPU at rest", "% of a core"),
            ("request", "CPU per request at 100/s", "ms"),
            ("saturated", "CPU per request, saturated", "ms"),
        )
    ),
    own_shop=True,
)

OPPONENTS: Final = Experiment(
    "opponents",
    "Beside other systems for durable execution",
    "Shoppers add and remove; each change is a durable hold that never oversells, answered to its shopper. The shop is "
    "edge, cart and inventory over WebSocket. DBOS is FastAPI with a durable workflow per change over Postgres, in two "
    "processes of four threads. Restate is its server and a virtual object per product and per cart, over its HTTP "
    "ingress. One system runs at a time, with the servers that it needs. CPU and memory are of all its processes.",
    opponents_sides,
    tuple(
        Row(figure, label, unit, base, is_main_result=figure == f"p50@{OPPONENT_RATES[1]}")
        for figure, label, unit in (
            *(
                (f"{figure}@{rate}", f"{figure} at {rate}/s", "ms")
                for rate in OPPONENT_RATES
                for figure in ("p50", "p99")
            ),
            ("cpu@100", "CPU per request at 100/s", "ms"),
            ("saturation", "saturation, 64 in flight, 2,000 products", "/s"),
            ("saturation_cpu", "CPU per request, saturated", "ms"),
            ("hot", "saturation, 64 in flight, one product", "/s"),
            ("memory", "memory after the load", "MiB"),
        )
        for base in (DBOS, RESTATE)
    ),
    (
        LineChart(
            "opponents.svg", "Add to cart and remove: latency against rate", ("p50",), "requests per second", "ms"
        ),
    ),
    own_shop=True,
)

EXPERIMENTS: Final = {
    each.name: each for each in (LATENCY, LIMITS, OPPONENTS, START, CHECKOUT, HOLDS, LOCK, SOCKETS, GROWTH)
}

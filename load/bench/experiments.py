"""Table of all experiments: the question, the method, and the ratio that matters."""

from typing import Final

from load.bench.checkout import BARE_CHAIN as HOPS_AND_COMMITS
from load.bench.checkout import RATE, STAGES, checkout_sides
from load.bench.growth import growth_sides
from load.bench.holds import BARE_STATEMENT, WITHOUT_LOCK, holds_sides, lock_sides
from load.bench.latency import RATES, latency_sides, limits_sides
from load.bench.rounds import BarChart, Experiment, LineChart, Row
from load.bench.sockets import sockets_sides
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
    ),
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
)

LOCK: Final = Experiment(
    "lock",
    "The Redis lock, on and off",
    "Two inventory workers drain requests for six units each of one product, so that each batch takes the lock. Row "
    "locks and the CHECK in Postgres decide in both cases.",
    lock_sides,
    (Row("hot", "one hot product, two workers", "holds/s", WITHOUT_LOCK, is_main_result=True),),
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

EXPERIMENTS: Final = {each.name: each for each in (LATENCY, LIMITS, CHECKOUT, HOLDS, LOCK, SOCKETS, GROWTH)}

"""The table of all experiments: what is asked, how it is measured, and which ratio matters."""

from typing import Final

from load.bench.checkout import BARE as HOPS_AND_COMMITS
from load.bench.checkout import RATE, STAGES, checkouts
from load.bench.growth import growth
from load.bench.holds import BARE, OFF, holds, lock
from load.bench.latency import RATES, limits, steady
from load.bench.rounds import Bars, Experiment, Lines, Row
from load.bench.sockets import sockets
from load.bench.targets import ECHO, PLAIN

LATENCY: Final = Experiment(
    "latency",
    "Add to cart, at a steady rate",
    "From the intended instant of the frame to its outcome, over a WebSocket. The shop's path is four hops through "
    "Kafka and one transaction; the echo is the same four hops with nothing in them; the plain shop has no broker.",
    steady,
    tuple(
        Row(f"{figure}@{rate}", f"{figure} at {rate}/s", "ms", ECHO, key=rate == RATES[1] and figure == "p50")
        for rate in RATES
        for figure in ("p50", "p99")
    )
    + tuple(
        Row(f"{group}@{rate}", f"CPU of {who} a request at {rate}/s", "ms", base)
        for rate in RATES[1:]
        for group, who, base in (
            ("service", "the service itself", ECHO),
            ("kafka", "Kafka", ECHO),
            ("postgres", "Postgres", PLAIN),
        )
    ),
    (Lines("latency.svg", "Add to cart: latency against rate", ("p50", "p99"), "requests a second", "ms"),),
)

LIMITS: Final = Experiment(
    "limits",
    "The knee, saturation, and beyond",
    "The knee is the highest rate with p99 within 50 ms and nothing lost, found by doubling and halving. Saturation is "
    "what 256 requests in flight come to. Beyond: twice the knee is asked for, and goodput is what is still answered.",
    limits,
    (
        Row("knee", "knee", "/s", ECHO, key=True),
        Row("saturation", "saturation, 256 in flight", "/s", ECHO),
        Row("service_cpu", "CPU of the service itself a request, saturated", "ms", ECHO),
        Row("goodput", "goodput at twice the knee", "/s"),
        Row("goodput_share", "goodput at twice the knee ÷ knee", ""),
        Row("beyond_p99", "p99 at twice the knee", "ms"),
        Row("beyond_lost", "lost at twice the knee", "requests"),
        Row("beyond_errors", "p99 of refusals for want of room", "ms"),
    ),
    (Bars("limits.svg", "Knee and saturation", (("knee", "knee"), ("saturation", "saturation")), "requests a second"),),
)

HOLDS: Final = Experiment(
    "holds",
    "Holds a second",
    "One inventory worker drains a topic that was filled beforehand, on one hot product and over 10,000. The bare "
    "statement is `pgbench` at the best of 1, 4, 8 and 16 connections; the plain shop is saturated over 64 sockets.",
    holds,
    (
        Row("hot", "one hot product", "holds/s", BARE, key=True),
        Row("spread", "10,000 products", "holds/s", BARE, key=True),
        Row("hot", "one hot product, against the plain shop", "holds/s", PLAIN),
        Row("spread", "10,000 products, against the plain shop", "holds/s", PLAIN),
        Row("hot_best_c", "connections at their best, hot", ""),
        Row("spread_best_c", "connections at their best, spread", ""),
    ),
    (
        Bars(
            "holds.svg", "Holds a second", (("hot", "one hot product"), ("spread", "10,000 products")), "holds a second"
        ),
    ),
)

LOCK: Final = Experiment(
    "lock",
    "The Redis lock, on and off",
    "Two inventory workers drain requests for six units each of one product, so that each batch asks for the lock. Row "
    "locks and the CHECK in Postgres decide either way.",
    lock,
    (Row("hot", "one hot product, two workers", "holds/s", OFF, key=True),),
)

CHECKOUT: Final = Experiment(
    "checkout",
    "Checkout",
    f"From the intended instant of a checkout frame, {RATE} a second over as many sockets as there are checkouts, to "
    "the frame that says how far its order is. The opponent is the hops and commits of that stage, with nothing "
    "in them: "
    + "; ".join(f"{each.name} {each.hops} hops through Kafka and {each.commits} commits" for each in STAGES)
    + ". Paid takes two questions over HTTP to the simulated provider besides.",
    checkouts,
    tuple(
        Row(f"{stage.name}_{figure}", f"{stage.name}, {figure}", "ms", HOPS_AND_COMMITS, key=figure == "p50")
        for stage in STAGES
        for figure in ("p50", "p99")
    ),
    (
        Bars(
            "checkout.svg",
            "Checkout: how long until an order is …",
            tuple((f"{stage.name}_p50", stage.name) for stage in STAGES),
            "ms, p50",
        ),
    ),
)

SOCKETS: Final = Experiment(
    "sockets",
    "Sockets",
    "Resident memory of the edge above that of the idle process, by open socket, and one change of stock on its way to "
    "all who watch that product. Changes are told at most four times a second, so up to 250 ms are waiting on purpose.",
    sockets,
    (
        Row("kib@1000", "KiB a socket, at 1,000", "KiB", PLAIN),
        Row("kib@10000", "KiB a socket, at 10,000", "KiB", PLAIN, key=True),
        Row("push_ms", "one change of stock at the last of 10,000 watchers", "ms"),
        Row("push_cpu_ms", "CPU of the edge for that", "ms"),
    ),
)

GROWTH: Final = Experiment(
    "growth",
    "What grows",
    "The time of one hold when a full topic is drained, and the time until a worker is back at work: the inventory's "
    "until its first answer, the cart's, killed with -9, until its table is whole.",
    growth,
    tuple(
        Row(f"{law}_{what}@{size}", f"{title} {size:,}: {label}", unit)
        for law, title, sizes in (
            ("catalogue", "products", (100, 10_000, 100_000)),
            ("carts", "live carts", (100, 1_000, 10_000)),
            ("history", "events of 1,000 carts", (1_000, 10_000, 50_000)),
        )
        for what, label, unit in (("hold", "a hold", "µs"), ("back", "back at work", "s"))
        for size in sizes
    ),
    (
        Lines(
            "growth-hold.svg",
            "Time of a hold against size",
            ("catalogue_hold", "carts_hold", "history_hold"),
            "products, carts, events",
            "µs",
        ),
        Lines(
            "growth-back.svg",
            "Time back to work against size",
            ("catalogue_back", "carts_back", "history_back"),
            "products, carts, events",
            "s",
        ),
    ),
    once=True,
)

EXPERIMENTS: Final = {each.name: each for each in (LATENCY, LIMITS, CHECKOUT, HOLDS, LOCK, SOCKETS, GROWTH)}

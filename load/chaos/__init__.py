"""Chaos: a shop of its own, faults on purpose, and a checker that reads what everyone saw.

| module | what it does |
|---|---|
| `history` | what was asked, answered and broken, one JSON line each, in the order of one clock |
| `truth` | what the shop says afterwards: its books, its topics, its carts (values only) |
| `checker` | the invariants, over a history and the truth; pure |
| `money` | the invariants of what was paid: it is sold, or given back; pure |
| `streams` | the invariants of orders: each is one stream of events, and what its shopper reads; pure |
| `rare` | the ways of an order that are seldom taken, counted; pure |
| `bounds` | one more invariant: what a shopper is told is available must have been possible; pure |
| `figures` | what happened at all, how long anybody waited; pure |
| `shoppers`, `checkouts` | the load: shoppers who write down everything, and how they check out |
| `stage` | the shop under test and the hands that break it |
| `records` | faults made of records: repeated, replayed, unreadable, astray |
| `deaf` | clients that ask and never read |
| `scene`, `nemesis` | what a fault is, and every fault by its name |
| `process_faults`, `order_faults` | those of processes, and those of paying |
| `provider` | the payment provider under test, and its own books |
| `reading` | fills in the truth |
| `scenarios` | which faults come together, and what must have happened for a run to count |
| `run` | a scenario from its start to its verdict |
| `command` | `holdfast chaos` |
"""

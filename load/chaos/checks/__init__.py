"""Checks of the lab: invariants over a history and the observed state. No I/O.

| module | purpose |
|---|---|
| `checker` | all invariants, and those of stock, carts, answers and dead letters |
| `availability` | each available quantity reported to a shopper was possible at that time |
| `order_streams` | every order is one stream of events and equals all views of it |
| `money` | all captured money was earned or refunded, exactly once |
| `rare_outcomes` | ends of orders and their rare outcomes, counted |
| `coverage` | events that a run must contain, and waiting times |
| `observed_state` | the shop's state after a scenario, as plain values |
| `violation` | violation of an invariant |
"""

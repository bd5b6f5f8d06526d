"""Baselines for the benchmarks, each as simple and as fast as possible, and each a separate process.

| module | contents |
|---|---|
| `echo` | WebSocket, some hops through Kafka, optional commits, and back: the shop's path without the shop |
| `bare_hold` | one statement that takes a unit and records its holder, by `pgbench`: the limit of Postgres itself |
| `plain_shop` | a synchronous FastAPI service with one Postgres statement per request and no broker |
| `dbos_shop`, `restate_shop` | opponents: the same change of a cart on DBOS and on Restate, with their own packages |
"""

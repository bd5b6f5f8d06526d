"""What the shop is measured against, each as simple and as fast as it can be, and each a process that can be read.

| module | what it is |
|---|---|
| `echo` | a bare WebSocket, some hops through Kafka, perhaps commits, and back: the shop's path without a shop |
| `bare_hold` | one statement that takes a unit and notes who has it, by `pgbench`: what Postgres can do by itself |
| `plain_shop` | a synchronous FastAPI service with one Postgres statement a request and no broker |
"""

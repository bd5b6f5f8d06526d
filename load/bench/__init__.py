"""Benchmarks against baselines: which system is faster, by what ratio, and whether the ratio is significant.

The inventory benchmarks drive one worker directly: they write to its request topic, as the cart service does by the
contract, and verify the result in the schema `inventory`.

| module | purpose |
|---|---|
| `significance` | whether two series of measurements yield a ratio; search for the knee; slopes; no I/O |
| `steadiness` | whether a side is warm: two consecutive windows agree; no I/O |
| `machine` | CPU and memory use of processes, and a description of the machine |
| `processes` | a temporary shop, and baselines as processes |
| `rounds` | interleaved rounds and their raw records |
| `targets`, `latency` | the shop and its baselines behind one driver: latency, knee, saturation, overload |
| `start` | a whole shop: time until ready, memory and CPU at rest, first load after a start |
| `opponents` | DBOS and Restate, if they are installed |
| `checkout` | time until an order is committed, paid and confirmed, against its bare hops and commits |
| `inventory_drain`, `holds`, `growth` | one inventory worker draining a full topic: holds per second, locks, growth |
| `sockets` | memory per socket, and stock pushed to many watchers |
| `experiments` | table of all experiments |
| `report`, `chart` | `docs/performance/`: tables and charts from the raw records |
"""

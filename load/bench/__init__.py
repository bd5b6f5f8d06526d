"""Measurements with opponents: who is faster, by how much, and whether that can be believed.

| module | what it does |
|---|---|
| `trust` | when two series of numbers make a ratio, and when they don't; the search for the knee; slopes: pure |
| `machine` | what CPU and memory processes use, and what the machine is |
| `stack` | a shop of its own in a temporary directory, and opponents as processes |
| `rounds` | interleaved rounds, and the raw record of them |
| `targets`, `latency` | the shop and its opponents behind one driver: latency, knee, saturation, overload |
| `checkout` | how long until an order is committed, paid and confirmed, beside its bare hops and commits |
| `hop`, `holds`, `growth` | the inventory hop alone, fed from a full topic: holds a second, locks, growth |
| `sockets` | memory a socket, stock pushed to a crowd |
| `experiments` | the table of all of them |
| `report`, `chart` | `docs/performance/`: tables and pictures from the raw records |
"""

"""Fault lab: start a temporary shop, inject faults under load, and check a recorded history against the shop's state.

Unlike the rest of `load`, the fault lab is not limited to the public contract. It signals processes, reads the private
schemas of the services, reads and writes their topics, and controls the simulated payment provider.

| module | purpose |
|---|---|
| `command` | `holdfast chaos` |
| `prove_orders` | `holdfast prove orders`: thousands of checkouts while every process is killed in turn |
| `scenarios` | combinations of faults, and the events required for a run to count |
| `runner` | runs one scenario: load, faults, quiescence, collection, checks |
| `shop_under_test` | the temporary shop, and operations on its processes and servers |
| `history` | what was requested, answered and broken, as JSON lines ordered by one clock |
| `collect` | reads the shop's state once it is quiescent: databases, topics, carts, consumer lag |
| `clients` | shoppers that record everything, a client that reads nothing, the payment provider's API |
| `faults` | the nemesis and every fault by name |
| `checks` | invariants over a history and the collected state; no I/O |
"""

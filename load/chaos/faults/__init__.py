"""Faults of the lab: what each one does to processes, servers, records and payments.

| module | purpose |
|---|---|
| `nemesis` | every fault by name, and the injection of one |
| `context` | definition of a fault, and the context it acts on |
| `processes` | processes killed, terminated, frozen, duplicated, with a wrong clock |
| `payments` | a provider that is down, slow or failing, repeated webhooks, replayed order topics |
| `records` | records duplicated, replayed or invalid |
"""

"""The messages on Kafka between services, pure: no I/O, clock or randomness. Every package may import it.

| module | contents |
|---|---|
| `envelope` | the CloudEvents envelope of every record, and registries of message types |
| `ids` | time-ordered ids, and ids derived from their cause |
| `topics` | names, keys, partitions, retention and settings of topics |
| `trace_context` | W3C trace context |
| `accounts`, `cart`, `inventory`, `orders` | messages and topics of each |
| `payments`, `deliveries`, `insights`, `notifications` | messages and topics of each |
"""

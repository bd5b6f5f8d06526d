"""The order service: an event-sourced saga from a cart to a delivered parcel, with compensation on failure.

`model.py`, `outcomes.py` and `commands.py` are the pure saga, `state.py` is the fold of an order's events, `store.py`
the event store, `agents.py` the Kafka shell, `audit.py` the consistency check and `repairs.py` the repair commands. The
packages `payment`, `delivery` and `insights` are services of their own.

Owns: the order streams (schema `orders`). Consumes: `orders.requests`, `inventory.responses`, `payments.events`,
`deliveries.events`. Emits: `orders.events`, `inventory.requests`, `payments.requests`, `deliveries.requests`, and
the frames `order` on `cart.responses`.
"""

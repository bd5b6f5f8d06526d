"""Orders: from a cart to a delivered parcel, or everything undone. An event-sourced saga.

Owns: the order streams (schema `orders`). Consumes: `orders.requests`, `inventory.responses`, `payments.events`,
`deliveries.events`. Emits: `orders.events`, `inventory.requests`, `payments.requests`, `deliveries.requests`, and the
frames `order` on `cart.responses`.
"""

"""The edge: HTTP and WebSocket, the one door to the shop.

Owns: shoppers' sockets and sessions, guests' tokens, the claims of idempotency keys, and the read models of the
catalogue and of orders (Postgres schema `edge`).
Consumes: `cart.responses` (handed to the shopper's sockets); `catalogue.products`, `inventory.stock`, `orders.events`,
`payments.events` and `deliveries.events` (the read models); `payments.state`.
Emits: `cart.requests`, `orders.requests`, `payments.requests` (webhooks), `inventory.requests` (reservations).
"""

"""The edge: HTTP and WebSocket, the one door to the shop.

Owns: shoppers' sockets and sessions, guests' tokens, the claims of idempotency keys, and the read model of the
catalogue (Postgres schema `edge`).
Consumes: `cart.responses.v1` (handed to the shopper's sockets), `catalogue.products.v1` and `inventory.stock.v1` (the
read model).
Emits: `cart.requests.v1`.
"""

"""The edge: the only public entry point of the shop, over HTTP and WebSocket.

Owns: sockets and sessions of shoppers, guest tokens, idempotency keys, and the read models (Postgres schema `edge`).
Consumes: `cart.responses` and `notifications.events` (sent to sockets and waiting HTTP requests); `catalogue.products`,
`inventory.stock`, `orders.events`, `payments.events`, `deliveries.events` and the insights' topics (read models);
`payments.state` (whether new orders are accepted).
Produces: `cart.requests`, `orders.requests`, `payments.requests` (webhooks), `inventory.requests` (reservations),
`notifications.requests`.

Where to find what:

- `http/`: one module per group of routes in `routers/`, bodies in `schemas/`, commands in `commands/`, one module per
  concern in `middleware/`; `idempotency.py` executes commands, `dependencies.py` authenticates and counts requests.
- `websocket/`: `endpoint.py` accepts sockets, `session.py` is the protocol without I/O, `connections.py` holds all open
  sockets, `in_flight.py` the requests without an outcome.
- `protocol/`: client frames, server frames, effects, and the AsyncAPI document. Pure.
- `security/`: tokens and tickets, token buckets, limits per address, load shedding.
- `server/`: uvicorn's protocols with deadlines, the pool of connections, strict parsing of requests.
- `kafka/`: the producer and the consumer of responses.
- `read_models/`: projectors and queries of catalogue, orders, notices and insights, with SQL and migrations.
- `pages/`: the shop's page and the page of figures; `vendor/`: Swagger UI.
"""

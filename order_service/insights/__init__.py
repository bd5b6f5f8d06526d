"""The insights service: products bought together, and figures of the shop by minute, hour and day.

Owns: two read models (schema `insights`). Consumes: `orders.events`, `payments.events`, `cart.responses`. Emits:
`insights.related`, `insights.figures`. The service makes no decision and no other service waits for it: if it is down,
the shop sells as before. `holdfast baskets` computes the same rules from a file, without a shop.
"""

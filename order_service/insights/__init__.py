"""What the shop's own events teach: what is bought together, and its figures by minute, hour and day.

Owns: two read models (schema `insights`). Consumes: `orders.events`, `payments.events`, `cart.responses`. Emits:
`insights.related`, `insights.figures`. It decides nothing, and nothing waits for it: with every process of it gone, the
shop sells as before. `holdfast baskets` learns the same rules from a file, without a shop.
"""

"""Carts: what each shopper asked for and what was granted.

Owns      the table `carts`, a cache with a changelog: the last cart that inventory told, and what is still pending.
Consumes  cart.requests.v1 (what shoppers ask), inventory.responses.v1 (what was decided).
Emits     inventory.requests.v1 (each request, asked again until it is decided), cart.responses.v1 (what came of it),
          orders.requests.v1 (the order of a checkout).
It decides nothing: quantities, refusals and expiry are facts of the inventory service, taken by their revision.
"""

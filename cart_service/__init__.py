"""The cart service: each shopper's cart with its pending requests.

Owns      the table `carts`: a cache, with a changelog, of the last cart that inventory sent and of pending requests.
Consumes  cart.requests.v1 (requests of shoppers), inventory.responses.v1 (decisions).
Emits     inventory.requests.v1 (each request, retried until it is decided), cart.responses.v1 (outcomes and answers),
          orders.requests.v1 (the order of a checkout).
The service decides nothing. Quantities, refusals and expiry are facts of the inventory service, applied by revision.

Start reading at `model.py` (rules), then `agents.py` (topics), `store.py` (table), `audit.py` (checks on the topics).
"""

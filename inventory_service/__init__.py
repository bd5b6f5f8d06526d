"""The inventory service: stock, holds and their expiry, holds of orders and reservations, and the catalogue.

Owns      the Postgres schema `inventory`. Every outcome and every cart's lines are created there, in one transaction.
Consumes  inventory.requests.v1, keyed by user.
Emits     inventory.responses.v1 (each outcome with the full cart), inventory.stock.v1 and catalogue.products.v1 (the
          latest state of each product), and `expire` requests to itself for carts that are due.

`model.py` and `order_rules.py` hold the rules, `state.py` their types, `store.py` the transaction and `agents.py` the
topics. In the background run `expiry_scanner.py`, `publisher.py`, `retention.py` and the audit (`audit.py`,
`audit_topics.py`).
"""

"""The inventory service: stock, holds, their expiry, what is reserved for orders, and the catalogue.

Owns the Postgres schema `inventory`, where every outcome and every cart's lines are born in one transaction.
Consumes `inventory.requests` (keyed by shopper). Emits `inventory.responses` (each outcome with the whole cart),
`inventory.stock` and `catalogue.products` (the last state of each product), and its own knocks for carts that are due.
"""

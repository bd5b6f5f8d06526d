"""The delivery service: books parcels with a carrier and tracks them (a process of its own, schema `delivery`).

Consumes: `deliveries.requests`. Emits: `deliveries.events`. The carrier is simulated, behind the port in `carrier.py`.
"""

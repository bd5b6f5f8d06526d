"""Delivery: a parcel is booked, shipped, delivered or comes back; its own process (schema `delivery`).

Consumes: `deliveries.requests`. Emits: `deliveries.events`. The carrier behind its port is simulated.
"""

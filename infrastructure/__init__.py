"""Shared by all services: envelopes, topics, workers, job queues, locks, observability, and the local stack.

It imports no service.
"""

"""Shared by all services: workers, dead letters, job queues, locks, observability, and the local stack.

It imports no service.
"""

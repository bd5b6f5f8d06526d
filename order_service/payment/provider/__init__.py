"""A simulated payment provider: a process with an HTTP API, persistent storage and configurable failures.

The provider has no access to the shop. The token of a charge determines its outcome; `/control` determines whether and
how the API responds.
"""

"""The payment service: makes each charge exactly once (a process of its own, schema `payment`).

Consumes: `payments.requests`. Emits: `payments.events`, `payments.state`. The package `provider` is a simulated payment
provider: a process of its own with an HTTP API, like a real provider.
"""

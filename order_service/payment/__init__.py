"""Payment: each charge made once, whatever the provider does; its own process (schema `payment`).

Consumes: `payments.requests`. Emits: `payments.events`, `payments.state`. Beside it stands a simulated provider, a
process of its own that is spoken to over HTTP as a real one is.
"""

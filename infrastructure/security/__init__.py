"""Tokens, signed webhooks, and the circuit breaker."""

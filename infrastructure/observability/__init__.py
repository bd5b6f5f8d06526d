"""Structured logs and the metrics vocabulary."""

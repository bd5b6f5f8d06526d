"""Authentication, rate limits, and admission control."""

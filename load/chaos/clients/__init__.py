"""Clients of the lab.

| module | purpose |
|---|---|
| `recording_client` | shopper that changes its cart, checks out, and records every request and answer |
| `checkouts` | choices of how shoppers check out |
| `slow_reader` | client that sends many requests and reads nothing |
| `payment_provider` | client of the simulated payment provider |
"""

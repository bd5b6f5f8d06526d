"""The SMS processor: hands stored notices to a simulated provider, which keeps them in a table."""

"""The SMS processor: hands stored notices to a simulated provider, which stores them in a table."""

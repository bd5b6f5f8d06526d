"""Commands that HTTP requests send to services."""

"""The HTTP side of the edge: routers, schemas, commands and middleware."""

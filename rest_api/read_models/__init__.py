"""The edge's read models: the content of topics in Postgres or memory, for the routes to read."""

"""The edge's read models: what topics say, kept in Postgres or memory, for the routes to read."""

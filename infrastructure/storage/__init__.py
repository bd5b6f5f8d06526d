"""Postgres connections and migrations, the job queue, contention locks in Redis."""

"""The servers of the local stack: Kafka, PostgreSQL and Redis (Valkey), started here or external.

`server` is the base class, `kafka`, `postgres` and `redis` implement it, and `external` monitors servers named in the
environment. `jars` downloads Kafka, `probes` checks servers and services, `port_reservations` reserves ports.
"""

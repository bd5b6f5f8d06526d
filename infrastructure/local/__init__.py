"""The local stack: Kafka, PostgreSQL, Redis and the shop's services on this machine.

No container, no root, no package manager: the servers are files of pinned packages, and every
service is started as a process (`python -m cart_service run`), so nothing here imports one.

Read in this order: `errors` (what can go wrong, with its exit code), `state` (the root directory),
`parts` and `services` (what is started), `keeper` (keeps one of them running), `supervisor` (all of
them), `up` (the command), `cli` (the other commands).
"""

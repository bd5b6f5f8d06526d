"""The commands of `holdfast`.

`up` starts and stops a shop, `output` prints progress and status, and `passthrough` runs psql and Kafka's own tools.
`registry` adds all other commands: `topics` (with `tail`), `replay`, `dlq`, `token`, `top`, and in `service_commands`
those that run a service or the load driver. They share `connection` (addresses of the shop), `topic_reader`,
`topic_writer`, `dead_letters`, `consumer_lag` and `process_stats`.
"""

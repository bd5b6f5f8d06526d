"""Kafka: topics, the batch processor, dead letters, workers with Faust agents.

| module | purpose |
|---|---|
| `worker` | the process of a service: one Faust app with its agents, tables and background loops |
| `liveness` | the probe that fails when a worker has work and makes no progress |
| `batch_processor` | between a topic and its handler: decode, retry, dead-letter |
| `dead_letters` | dead letters, and the markers of the settled ones |
| `dead_letter_limit` | stops a worker before it dead-letters a whole topic |
| `broker` | create topics, compute partitions, check and stop consumers |
| `topic_history` | one-off reads of topics up to their current end |
| `faust/` | the Faust app, its transport, leaving a consumer group |
"""

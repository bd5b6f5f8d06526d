"""Kafka: topics, the batch processor, dead letters, workers with Faust agents.

| module | purpose |
|---|---|
| `worker` | the process of a service: one Faust app with its agents, tables and background loops |
| `liveness` | the probe that fails when a worker has work and makes no progress |
| `batch_processor` | between a topic and its handler: decode, retry, dead-letter |
| `dead_letters` | dead letters, and the markers of the settled ones |
| `dead_letter_limit` | stops a worker before it dead-letters a whole topic |
| `kafka_security` | connection options of every Kafka client: TLS and SASL |
| `broker` | create topics, compute partitions, check and stop consumers |
| `topic_history` | one-off reads of topics up to their current end |
| `faust/` | the Faust app, its transport, leaving a consumer group |
"""

from infrastructure.process.environment import remove_foreign_variables

# Faust and aiokafka read variables of the environment when they are imported, which is after this package.
remove_foreign_variables()

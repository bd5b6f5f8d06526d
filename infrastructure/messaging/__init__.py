"""Kafka: topics, the batch processor, dead letters, workers with Faust agents."""

"""The edge's connections to Kafka, and how records are read."""

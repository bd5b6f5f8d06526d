"""What every service stands on: envelopes, topics, workers, locks, the local stack. It knows no service."""

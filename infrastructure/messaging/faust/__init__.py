"""Faust: the app with its settings and patches, the driver of our own, leaving a consumer group."""

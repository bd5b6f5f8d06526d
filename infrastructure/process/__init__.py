"""Processes: settings, start and stop, health, the clock, failpoints, command lines."""

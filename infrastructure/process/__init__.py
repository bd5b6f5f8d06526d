"""Processes: settings, start and stop, health, the clock, failpoints, command lines."""

from infrastructure.process.environment import remove_foreign_variables

# The metrics client reads variables of the environment when it is imported, which is after this package.
remove_foreign_variables()

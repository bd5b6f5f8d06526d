"""Structured logs and the metrics vocabulary."""

from infrastructure.process.environment import remove_foreign_variables

# As in `infrastructure.process`, for processes that import this package first.
remove_foreign_variables()

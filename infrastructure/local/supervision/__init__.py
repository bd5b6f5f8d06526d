"""Supervision of a shop's programs.

`startup_plan` decides which programs run on which ports, `services` is the table of the shop's services, `supervisor`
starts and stops all programs, `watchdog` runs and restarts one program, and `health_tracker` decides from its probes
whether it is ready, degraded or frozen. `limits` describes the edge's limits for `holdfast status`.
"""

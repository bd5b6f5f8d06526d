"""Base for services that consume no Kafka topic: background loops and health endpoints, without the cost of Faust.

The process ends in one of two ways: on SIGTERM or SIGINT, after its loops have finished the work in hand (exit status
0), or hard, when its loops did not stop in time (exit status 75).
"""

from infrastructure.process.service import ServiceProcess


class BackgroundService(ServiceProcess):
    """One replica of a service without a topic. Build it, register its loops, then call `run`."""

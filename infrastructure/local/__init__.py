"""The local stack: Kafka, PostgreSQL, Redis and the shop's services on this machine, and the `holdfast` command.

The stack needs no container, no root user and no package manager: the servers are files of pinned packages. Every
service is started as a process (`python -m cart_service run`), so no module here imports a service.

| where | |
|---|---|
| `servers/` | the servers: how each is prepared, started, probed and recognised |
| `supervision/` | the plan of an `up`, the supervisor, and the watchdog of each program |
| `commands/` | the commands of `holdfast`, and readers of topics and metrics for them |
| `cli.py` | entry point of `holdfast` |
| `errors.py` | expected errors, each with an exit code |
| `state.py` | the root directory `.holdfast` |
| `events.py` | progress events of a supervisor |
| `processes.py` | search for processes, signals |

Imports go downwards only: `cli` > `commands` > `supervision` > `servers` > the other modules.
"""

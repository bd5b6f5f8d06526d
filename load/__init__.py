"""Load driver, proofs, benchmarks and fault lab.

Everything but the fault lab is a client of the public contract: shoppers have tokens and sockets like any other client.
Three places also read the database, to compare it with the answers: `ledger` and `bench/inventory_drain` check totals
in the schema `inventory`, and `unguarded_control` writes to a scratch schema of its own. The benchmarks and the fault
lab start shops through `infrastructure.local`. The fault lab (`chaos`) kills processes and reads any schema and topic.

| module | purpose |
|---|---|
| `protocol` | rules of a WebSocket client: which frames to apply, what to send next; no socket, no clock |
| `client` | shopper with a token and a WebSocket |
| `http_client` | HTTP side of the shop |
| `verdict`, `verdict_table` | counts the answers to a rush of buyers and lists the errors among them |
| `prove_oversell` | sends many buyers for one product of a running shop |
| `unguarded_control` | the same rush against a shop with the classic race, which the verdict must detect |
| `schedule`, `measurements` | send times of the open loop, its results, and whether they are valid |
| `driver`, `raw_websocket`, `raw_http` | the open loop: many sockets, intended send times |
| `precise_timer`, `priority` | the driver's clock, and its priority over the processes that it measures |
| `driver_process`, `driver_client` | the same as a process of its own, for the benchmarks |
| `load_run` | `holdfast load`: connects shoppers, measures at a steady rate, disconnects |
| `order_file`, `order_replay`, `ledger` | `holdfast shoppers`: replays a file of real orders and balances every unit |
| `cli` | the commands `load`, `shoppers` and `bench` |
| `holdfast_commands` | runs `holdfast seed` and `holdfast audit` as subprocesses |
| `bench`, `baselines` | `holdfast bench`: experiments, and the systems to compare with |
| `chaos` | the fault lab: `holdfast chaos` and `holdfast prove orders` |
| `k6`, `locust` | scripts with which two common load tools do the same |
"""

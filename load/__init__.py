"""Shoppers that nobody let in by the back door: clients of the public contract only.

| module | what it does |
|---|---|
| `protocol` | what a client believes of the frames it gets, and what it says next: no socket, no clock |
| `client` | a shopper with a token and a socket |
| `shop` | the shop's HTTP side |
| `verdict` | counts the answers of a crowd of buyers and says what is wrong with them |
| `prove` | sends such a crowd at one product of a running shop |
| `prove_orders` | 2,000 checkouts while everything dies in turn, in a shop of its own |
| `chaos` | the same with faults: what everyone saw is written down, and checked against what the shop says |
| `control` | the same crowd against a shop with the classic bug, to see the verdict fail |
| `schedule`, `figures` | when an open loop sends, what it measured, and whether it can be believed |
| `driver`, `wire`, `alarm` | the open loop itself: many sockets, intended instants |
| `visit` | `holdfast load`: a crowd comes in, shops at a steady rate, and leaves |
| `orders`, `replay`, `books` | `holdfast shoppers`: a file of real orders, and whether every unit adds up |
| `measuring` | the commands of these |
| `bench`, `peers` | `holdfast bench`: experiments, and the opponents |
| `k6`, `locust` | the same shoppers for two tools that others use |
"""

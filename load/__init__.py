"""Shoppers that nobody let in by the back door: clients of the public contract only.

| module | what it does |
|---|---|
| `protocol` | what a client believes of the frames it gets, and what it says next: no socket, no clock |
| `client` | a shopper with a token and a socket, and the shop's HTTP side |
| `verdict` | counts the answers of a crowd of buyers and says what is wrong with them |
| `prove` | sends such a crowd at one product of a running shop |
| `control` | the same crowd against a shop with the classic bug, to see the verdict fail |
"""

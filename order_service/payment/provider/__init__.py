"""A payment provider that is simulated: a small process with the HTTP API, the memory and the bad days of a real one.

It knows nothing of the shop. What a charge comes to depends on its token; whether anything is answered, on `/control`.
"""

"""The HTTP and WebSocket server: uvicorn, with bounds that uvicorn lacks.

- `listener.py`: the listening socket, and uvicorn's server.
- `connection_pool.py`: how many connections may be open, in all and per client network; which one is closed for room.
- `deadline.py`: the phase of a connection and the deadline of each phase, the same for both protocols.
- `http_protocol.py`, `websocket_protocol.py`: uvicorn's protocols, which enter these phases.
- `request_head.py`: strict reading of request lines, headers, chunk lines and trailers.
"""

"""The WebSocket side of the edge: endpoint, session, connections, and the table of requests in flight."""

"""The read model of orders: the fold over events, its queries and its projector."""

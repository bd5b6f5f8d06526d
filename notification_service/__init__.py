"""Notices: what a shopper should hear of, stored before it is sent, by e-mail, SMS and push.

Owns: notices, preferences and their history (schema `notifications`). Consumes: `notifications.requests`,
`orders.requests` (for how a shopper is reached), `orders.events`, `cart.responses`. Emits: `notifications.events`, and
the frames `notice` on `cart.responses`.
"""

"""The notification service: stores notices for shoppers, then sends them by e-mail, SMS and push.

Owns      the Postgres schema `notifications`: notices, contacts and preferences.
Consumes  notifications.requests.v1, orders.requests.v1 (for contacts), orders.events.v1, cart.responses.v1.
Emits     notifications.events.v1, and `notice` frames on cart.responses.v1.

`model.py` holds the rules, `templates.py` the texts, `store.py` the tables, `agents.py` the topics. Each channel is a
process of its own: `processor.py` and `sender.py` are common to all, and `email/`, `sms/` and `push/` hold their ports.
"""

"""The account service: users, their passwords, roles and sessions, and the keys that sign access tokens.

It consumes no topic. The edge forwards the requests of its account routes over HTTP, because a password must not lie on
a topic and a login waits for its answer. Events leave through an outbox in the transaction that causes them.

`model` has the rules, `passwords` hashes, `keys` signs, `store` keeps the tables of the Postgres schema `accounts`,
`commands` executes one request, `server` answers HTTP, `outbox` publishes, and `users` is `holdfast user`.
"""

"""One pure ASGI middleware for each concern of every request; `app.py` says in which order they are nested."""

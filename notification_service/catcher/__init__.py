"""The local mail catcher: a mail server that delivers nothing and shows what it was given, on a page."""

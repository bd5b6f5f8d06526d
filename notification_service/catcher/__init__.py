"""The mail catcher for development: a mail server that delivers nothing and shows received mails on a page."""

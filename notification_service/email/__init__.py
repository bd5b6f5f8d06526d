"""The e-mail processor: hands stored notices to a mail server, each under a fixed Message-ID."""

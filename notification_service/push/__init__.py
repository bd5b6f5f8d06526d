"""The push processor: sends stored notices to the shopper's open sockets, as `notice` frames."""

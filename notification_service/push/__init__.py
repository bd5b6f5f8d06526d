"""The push processor: tells stored notices to the sockets that a shopper has open, as frames `notice`."""

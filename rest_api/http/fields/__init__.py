"""Values of HTTP header fields, parsed as their RFCs say. All functions are pure and ignore what is malformed."""

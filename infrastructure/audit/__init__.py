"""Background audits of tables and topics."""

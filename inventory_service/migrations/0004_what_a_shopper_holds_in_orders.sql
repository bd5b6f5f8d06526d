-- For the limit of what one shopper holds: the units of orders that are not sold yet. They are few at any time.
CREATE INDEX hold_pending ON hold (user_id) WHERE order_id IS NOT NULL AND state = 'PENDING';

-- Nothing is sent to the address of an order that was refused before any stock was held for it. From now on its personal
-- data is deleted with the refusal; here, that of the orders that were refused before.
DELETE FROM order_private USING orders
 WHERE orders.order_id = order_private.order_id AND orders.status = 'cancelled' AND orders.total IS NULL;

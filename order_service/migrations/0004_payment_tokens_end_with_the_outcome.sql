-- A payment token is of use until the outcome of its charge is known. From now on it is erased then; here, the tokens of
-- the orders that have their outcome already.
UPDATE order_private SET payment = '{}' FROM orders
 WHERE orders.order_id = order_private.order_id
   AND (orders.captured IS NOT NULL OR orders.reason IS NOT NULL OR orders.status = 'cancelled');

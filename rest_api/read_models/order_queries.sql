-- name: put_events
-- Insert order events. An event that is already stored, or occurs twice in one statement, is ignored: the first one stays.
INSERT INTO order_event (order_id, version, type, at, data)
SELECT order_id, version, type, at, data
  FROM unnest(%(order_id)s::text[], %(version)s::bigint[], %(type)s::text[], %(at)s::timestamptz[],
              %(data)s::jsonb[]) WITH ORDINALITY AS input (order_id, version, type, at, data, n)
 ORDER BY order_id, version, n
ON CONFLICT (order_id, version) DO NOTHING;

-- name: put_steps
-- Insert events of payments and deliveries; one that is already stored is ignored.
INSERT INTO order_step (order_id, kind, event_id, type, at, data)
SELECT order_id, kind, event_id, type, at, data
  FROM unnest(%(order_id)s::text[], %(kind)s::text[], %(event_id)s::text[], %(type)s::text[], %(at)s::timestamptz[],
              %(data)s::jsonb[]) WITH ORDINALITY AS input (order_id, kind, event_id, type, at, data, n)
 ORDER BY order_id, kind, event_id, n
ON CONFLICT (order_id, kind, event_id) DO NOTHING;

-- name: put_placed
-- Insert a row for each order that has none.
INSERT INTO placed_order (order_id, user_id, created_at, updated_at)
SELECT order_id, user_id, at, at
  FROM unnest(%(order_id)s::text[], %(user_id)s::text[], %(at)s::timestamptz[]) AS input (order_id, user_id, at)
 ORDER BY order_id
ON CONFLICT (order_id) DO NOTHING;

-- name: lock_orders
-- Serializes the folds of an order, so that each one sees all events stored before it.
SELECT order_id FROM placed_order WHERE order_id = ANY(%(ids)s) ORDER BY order_id FOR UPDATE;

-- name: all_events
SELECT order_id, type, at, data::text FROM order_event WHERE order_id = ANY(%(ids)s) ORDER BY order_id, version;

-- name: put_orders
-- Update the rows of orders with their folded state.
UPDATE placed_order
   SET user_id = input.user_id, version = input.version, status = input.status, reason = input.reason,
       lines = input.lines, total = input.total, refunded = input.refunded, created_at = input.created_at,
       updated_at = input.updated_at
  FROM unnest(%(order_id)s::text[], %(user_id)s::text[], %(version)s::bigint[], %(status)s::text[], %(reason)s::text[],
              %(lines)s::jsonb[], %(total)s::jsonb[], %(refunded)s::jsonb[], %(created_at)s::timestamptz[],
              %(updated_at)s::timestamptz[])
       AS input (order_id, user_id, version, status, reason, lines, total, refunded, created_at, updated_at)
 WHERE placed_order.order_id = input.order_id;

-- name: order
SELECT order_id, user_id, version, status, reason, lines, total, refunded, created_at, updated_at
  FROM placed_order WHERE order_id = %(order_id)s;

-- name: orders
-- One page of orders, newest first. `orders/queries.py` fills in the braces from a fixed table.
SELECT order_id, user_id, version, status, reason, lines, total, refunded, created_at, updated_at
  FROM placed_order WHERE true {conditions}
 ORDER BY created_at DESC, order_id DESC
 LIMIT %(limit)s;

-- name: events
SELECT version, type, at, data FROM order_event
 WHERE order_id = %(order_id)s AND version > %(after)s ORDER BY version LIMIT %(limit)s;

-- name: steps
SELECT event_id, type, at, data FROM order_step
 WHERE order_id = %(order_id)s AND kind = %(kind)s AND (at, event_id) > (%(at)s, %(event_id)s)
 ORDER BY at, event_id LIMIT %(limit)s;

-- name: put_events
-- What became of some orders; what is known changes nothing, also within one statement: the first told stands.
INSERT INTO order_event (order_id, version, type, at, data)
SELECT order_id, version, type, at, data
  FROM unnest(%(order_id)s::text[], %(version)s::bigint[], %(type)s::text[], %(at)s::timestamptz[],
              %(data)s::jsonb[]) WITH ORDINALITY AS told (order_id, version, type, at, data, place)
 ORDER BY order_id, version, place
ON CONFLICT (order_id, version) DO NOTHING;

-- name: put_steps
-- What payments and deliveries told; what is known changes nothing.
INSERT INTO order_step (order_id, kind, event_id, type, at, data)
SELECT order_id, kind, event_id, type, at, data
  FROM unnest(%(order_id)s::text[], %(kind)s::text[], %(event_id)s::text[], %(type)s::text[], %(at)s::timestamptz[],
              %(data)s::jsonb[]) WITH ORDINALITY AS told (order_id, kind, event_id, type, at, data, place)
 ORDER BY order_id, kind, event_id, place
ON CONFLICT (order_id, kind, event_id) DO NOTHING;

-- name: begin
-- A row for each of some orders, if it has none.
INSERT INTO placed_order (order_id, user_id, created_at, updated_at)
SELECT order_id, user_id, at, at
  FROM unnest(%(order_id)s::text[], %(user_id)s::text[], %(at)s::timestamptz[]) AS told (order_id, user_id, at)
 ORDER BY order_id
ON CONFLICT (order_id) DO NOTHING;

-- name: lock
-- Whoever folds an order next finds every event that was told before.
SELECT order_id FROM placed_order WHERE order_id = ANY(%(ids)s) ORDER BY order_id FOR UPDATE;

-- name: all_events
SELECT order_id, type, at, data::text FROM order_event WHERE order_id = ANY(%(ids)s) ORDER BY order_id, version;

-- name: put_orders
UPDATE placed_order
   SET user_id = told.user_id, version = told.version, status = told.status, reason = told.reason, lines = told.lines,
       total = told.total, refunded = told.refunded, created_at = told.created_at, updated_at = told.updated_at
  FROM unnest(%(order_id)s::text[], %(user_id)s::text[], %(version)s::bigint[], %(status)s::text[], %(reason)s::text[],
              %(lines)s::jsonb[], %(total)s::jsonb[], %(refunded)s::jsonb[], %(created_at)s::timestamptz[],
              %(updated_at)s::timestamptz[])
       AS told (order_id, user_id, version, status, reason, lines, total, refunded, created_at, updated_at)
 WHERE placed_order.order_id = told.order_id;

-- name: order
SELECT order_id, user_id, version, status, reason, lines, total, refunded, created_at, updated_at
  FROM placed_order WHERE order_id = %(order_id)s;

-- name: orders
-- One page of orders, the newest first. What stands in braces is filled in from a fixed table in `order_store.py`.
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

-- The SQL statements of the order service, by name.

-- ---- round trip one: lock and read

-- name: insert_missing
-- Insert a row for each order that a batch mentions for the first time: decisions need a row to lock.
INSERT INTO orders (order_id, user_id)
SELECT o, u FROM unnest(%(new)s::text[], %(users)s::text[]) AS w(o, u) ORDER BY o ON CONFLICT DO NOTHING

-- name: lock_orders
-- Lock orders by ascending id, as everywhere, so that two batches never deadlock.
SELECT now(), order_id, published, attempts FROM orders
 WHERE order_id = ANY(%(ids)s::text[]) ORDER BY order_id FOR NO KEY UPDATE

-- name: streams
-- The events of some orders, the oldest first.
SELECT order_id, type, data::text, at FROM order_event
 WHERE order_id = ANY(%(ids)s::text[]) ORDER BY order_id, version

-- name: personal_data
-- The personal data of some orders.
SELECT order_id, address::text, contact::text, payment::text FROM order_private WHERE order_id = ANY(%(ids)s::text[])

-- name: waiting
-- The early messages of some orders, in the order of arrival.
SELECT order_id, user_id, request_id, type, message::text FROM waiting
 WHERE order_id = ANY(%(ids)s::text[]) ORDER BY order_id, came_at, type

-- name: answered
-- The stored replies to some requests.
SELECT order_id, user_id, request_id, type, refused FROM answered
 WHERE order_id = ANY(%(ids)s::text[]) AND request_id = ANY(%(requests)s::text[])

-- ---- round trip two: write

-- name: append_events
-- Without ON CONFLICT: if the version exists, another process decided first, and this transaction must fail.
INSERT INTO order_event (order_id, version, type, data, at)
SELECT o, v, t, d::jsonb, now() FROM unnest(%s::text[], %s::int[], %s::text[], %s::text[]) AS w(o, v, t, d)

-- name: save_orders
-- Update the read side of some orders.
UPDATE orders AS x
   SET version = w.version, status = w.status, reason = w.reason, currency = w.currency, total = w.total,
       captured = w.captured, refunded = w.refunded, refunding = w.refunding, placed_at = w.placed_at,
       changed_at = w.changed_at, due_at = w.due_at, attempts = w.attempts
  FROM unnest(%s::text[], %s::int[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[],
              %s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::int[])
       AS w(order_id, version, status, reason, currency, total, captured, refunded, refunding, placed_at, changed_at,
            due_at, attempts)
 WHERE x.order_id = w.order_id

-- name: set_due
-- Set the deadline of orders that are not placed yet.
UPDATE orders AS x SET due_at = w.due_at FROM unnest(%s::text[], %s::timestamptz[]) AS w(order_id, due_at)
 WHERE x.order_id = w.order_id AND x.version = 0

-- name: save_personal_data
-- Store the personal data of new orders.
INSERT INTO order_private (order_id, address, contact, payment)
SELECT o, a::jsonb, c::jsonb, p::jsonb
  FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS w(o, a, c, p)
    ON CONFLICT DO NOTHING

-- name: erase_payment_tokens
-- Erase the payment tokens of orders whose charge has its outcome.
UPDATE order_private SET payment = '{}' WHERE order_id = ANY(%s::text[])

-- name: delete_personal_data
-- Delete the personal data of orders that were refused before any stock was held for them.
DELETE FROM order_private WHERE order_id = ANY(%s::text[])

-- name: add_waiting
-- Store early messages.
INSERT INTO waiting (order_id, request_id, type, user_id, message)
SELECT o, r, t, u, m::jsonb FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[]) AS w(o, r, t, u, m)
    ON CONFLICT DO NOTHING

-- name: drop_waiting
-- Delete early messages that were handled.
DELETE FROM waiting AS x USING unnest(%s::text[], %s::text[], %s::text[]) AS w(o, r, t)
 WHERE (x.order_id, x.request_id, x.type) = (w.o, w.r, w.t)

-- name: add_answered
-- Store replies, and delete some that are older than the requests that the topic keeps; the retention job deletes what
-- this does not keep up with.
WITH given AS (
       SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::interval[])
                     AS w(order_id, user_id, request_id, type, refused, kept)),
     old AS (
       DELETE FROM answered WHERE ctid = ANY(ARRAY(
         SELECT ctid FROM answered WHERE at < now() - (SELECT kept FROM given LIMIT 1)
          ORDER BY at LIMIT 100 FOR UPDATE SKIP LOCKED)))
INSERT INTO answered (order_id, user_id, request_id, type, refused)
SELECT order_id, user_id, request_id, type, refused FROM given ON CONFLICT DO NOTHING

-- ---- background: retention

-- name: delete_old_replies
-- Delete some replies that are older than the requests that the topic keeps.
DELETE FROM answered WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM answered WHERE at < now() - %(kept)s::interval ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))

-- name: delete_old_waiting
-- Delete some early messages whose order was never placed.
DELETE FROM waiting WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM waiting WHERE came_at < now() - %(kept)s::interval
   ORDER BY came_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))

-- ---- publication and deadlines

-- name: mark_published
-- Never decrease the version: another process may have published more events meanwhile.
UPDATE orders AS x SET published = w.version
  FROM unnest(%s::text[], %s::int[]) AS w(order_id, version)
 WHERE x.order_id = w.order_id AND x.published < w.version

-- name: claim_due
-- Claim due orders for ten seconds. After that they are due again, in case the claiming process crashed.
UPDATE orders SET due_at = greatest(due_at, now() + interval '10 seconds')
 WHERE order_id = ANY(ARRAY(
         SELECT order_id FROM orders WHERE due_at <= now() ORDER BY due_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))
RETURNING order_id, user_id

-- name: unpublished
-- Orders whose events are unpublished for five seconds: their process probably crashed after the commit.
SELECT order_id, user_id FROM orders
 WHERE published < version AND changed_at < now() - interval '5 seconds' ORDER BY changed_at LIMIT %(limit)s

-- name: erase_personal_data
-- Orders that are not complete (due_at is set) keep the address, since the delivery needs it.
DELETE FROM order_private USING orders
 WHERE order_private.order_id = orders.order_id AND orders.user_id = %(user)s AND orders.due_at IS NULL

-- ---- the event store as a whole

-- name: all_events
-- All events, ordered within each order.
SELECT order_id, version, type, data::text, at FROM order_event ORDER BY order_id COLLATE "C", version

-- name: read_side
-- The part of the read side that follows from the events.
SELECT order_id, version, status, reason, currency, total, captured, refunded, refunding, placed_at, changed_at
  FROM orders WHERE version > 0 ORDER BY order_id COLLATE "C"

-- name: insert_rebuilt
-- Insert rows for orders that have events, but no row. They are published again.
INSERT INTO orders (order_id, user_id, published)
SELECT o, u, 0 FROM unnest(%(new)s::text[], %(users)s::text[]) AS w(o, u) ON CONFLICT DO NOTHING

-- name: delete_orders_without_events
-- Delete rows of placed orders that have no events.
DELETE FROM orders AS x WHERE version > 0 AND NOT EXISTS (SELECT FROM order_event AS e WHERE e.order_id = x.order_id)

-- ---- audit: each query returns one row per violation

-- name: stream_gaps
-- Versions of an order must be 1, 2, 3 and so on.
SELECT format('order %s: its %s events have versions from %s to %s', order_id, count(*), min(version), max(version))
  FROM order_event GROUP BY order_id HAVING min(version) <> 1 OR max(version) <> count(*)

-- name: read_side_differs
-- Each row must agree with the last event of its order.
SELECT format('order %s: the read side says version %s, %s; its last event version %s, %s',
              order_id, o.version, o.status, e.version, e.status)
  FROM orders AS o
  FULL JOIN (SELECT DISTINCT ON (order_id) order_id, version, data->>'status' AS status
               FROM order_event ORDER BY order_id, version DESC) AS e USING (order_id)
 WHERE (coalesce(o.version, 0), o.status) IS DISTINCT FROM (coalesce(e.version, 0), e.status)

-- name: money_differs
-- Captured = earned by delivery + refunded + in flight. In a complete order nothing is in flight.
WITH money AS (
  SELECT order_id,
         count(*) FILTER (WHERE type = 'holdfast.orders.captured') AS captures,
         count(*) FILTER (WHERE type = 'holdfast.orders.confirmed') AS confirmed,
         count(*) FILTER (WHERE type = 'holdfast.orders.delivered') AS delivered,
         coalesce(sum((data->'amount'->>'amount')::bigint) FILTER (WHERE type = 'holdfast.orders.captured'), 0) AS captured,
         coalesce(sum((data->'amount'->>'amount')::bigint) FILTER (WHERE type = 'holdfast.orders.refunded'), 0) AS refunded
    FROM order_event
   WHERE type IN ('holdfast.orders.captured', 'holdfast.orders.confirmed', 'holdfast.orders.delivered',
                  'holdfast.orders.refunded')
   GROUP BY order_id)
SELECT format('order %s, %s: captured %s in %s captures, refunded %s of a total of %s', order_id, o.status, m.captured,
              m.captures, m.refunded, coalesce(o.total::text, 'nothing'))
  FROM orders AS o JOIN money AS m USING (order_id)
 WHERE m.captures > 1 OR m.refunded > m.captured OR (m.confirmed > 0 AND m.captures = 0)
    OR (m.captured, m.refunded) <> (coalesce(o.captured, 0), o.refunded)
    OR (o.status IN ('confirmed', 'shipped', 'delivered') AND o.reason IS NULL AND m.captured IS DISTINCT FROM o.total)
    OR (o.due_at IS NULL AND (o.refunding <> 0 OR (m.delivered = 0 AND m.captured <> m.refunded)))

-- name: closed_without_final_status
-- A complete order is delivered or cancelled.
SELECT format('order %s: status %s is not final, but there is no deadline', order_id, status)
  FROM orders WHERE version > 0 AND due_at IS NULL AND status NOT IN ('delivered', 'cancelled')

-- name: overdue
-- Each deadline must be handled soon after it has passed.
SELECT format('order %%s, %%s: its deadline passed %%s ago and was not handled',
              order_id, status, date_trunc('second', now() - due_at))
  FROM orders WHERE due_at < now() - %(grace)s::interval

-- name: not_published
-- Each event must be published soon after its commit.
SELECT format('order %%s: version %%s is not published, only up to version %%s', order_id, version, published)
  FROM orders WHERE published < version AND changed_at < now() - %(grace)s::interval

-- name: never_placed
-- Each early message must be followed by its order.
SELECT format('order %%s of %%s: %%s arrived, but the order was never placed', order_id, user_id, type)
  FROM waiting JOIN orders USING (order_id, user_id)
 WHERE version = 0 AND came_at < now() - %(grace)s::interval

-- name: figures
-- Amounts are minor units. In flight is the captured money that is neither earned nor refunded.
SELECT count(*) FILTER (WHERE version > 0) AS orders_placed,
       count(*) FILTER (WHERE status = 'delivered') AS orders_delivered,
       count(*) FILTER (WHERE status = 'cancelled') AS orders_cancelled,
       count(*) FILTER (WHERE version > 0 AND status NOT IN ('delivered', 'cancelled')) AS orders_under_way,
       coalesce(sum(captured), 0)::bigint AS money_captured,
       coalesce(sum(captured - refunded) FILTER (WHERE earned), 0)::bigint AS money_confirmed,
       coalesce(sum(refunded), 0)::bigint AS money_refunded,
       coalesce(sum(captured - refunded) FILTER (WHERE NOT earned), 0)::bigint AS money_in_flight
  FROM (SELECT *, status IN ('confirmed', 'shipped', 'delivered') AND reason IS NULL AS earned FROM orders) AS o

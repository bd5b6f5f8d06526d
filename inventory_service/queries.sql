-- Every statement of the inventory service, by name. Those of the two trips are lookups by key and must never be
-- anything else: a test asks for their plans.

-- ---- trip one: lock and read. Each is a statement, and so a snapshot, of its own: what is read after a lock was
-- waited for is what its last holder committed.

-- name: insert_missing_holders
INSERT INTO holder (user_id) SELECT u FROM unnest(%(users)s::text[]) AS u ORDER BY u ON CONFLICT DO NOTHING

-- name: lock_holders
-- In the order of users everywhere, so that two batches never wait for each other.
SELECT now(), user_id, revision, first_held_at, expires_at, expired
  FROM holder WHERE user_id = ANY(%(users)s::text[]) ORDER BY user_id FOR NO KEY UPDATE

-- name: decided_before
-- LATERAL … OFFSET 0: a plain join with unnest was planned as a scan of the whole log.
SELECT l.user_id, l.requestid, l.command, l.outcome::text
  FROM unnest(%(of)s::text[], %(ids)s::text[]) AS r(user_id, requestid)
 CROSS JOIN LATERAL (
   SELECT user_id, requestid, command, outcome
     FROM request_log WHERE (user_id, requestid) = (r.user_id, r.requestid) OFFSET 0
 ) AS l

-- name: open_holds
SELECT user_id, product_code, hold_quantity, price_minor, currency
  FROM hold WHERE user_id = ANY(%(users)s::text[]) AND order_id IS NULL

-- name: reservations
-- What is or was held for some orders; asked only for batches about orders. A row of another shopper's, whose lock this
-- is not, is only looked at to find that it is another's.
SELECT r.order_id, r.user_id, r.purpose, r.revision, h.*
  FROM reservation AS r
  LEFT JOIN LATERAL (
    SELECT product_code, hold_quantity, price_minor, currency, state FROM hold WHERE order_id = r.order_id OFFSET 0
  ) AS h ON true
 WHERE r.order_id = ANY(%(orders)s::text[])
 ORDER BY r.order_id, h.product_code COLLATE "C"

-- name: lock_stock
-- The products asked for, those of orders to be sold or given back, and all that due or cleared carts hold. now() is the start of the transaction, so a cart is
-- due here exactly if it is due in the fold. The hottest rows are locked last.
SELECT product_code, received, held, sold, price_minor, currency, version,
       (SELECT NOT deleted FROM product WHERE code = product_code) IS TRUE
  FROM inventory
 WHERE product_code = ANY(%(codes)s::text[] || ARRAY(
         SELECT product_code FROM hold WHERE order_id = ANY(%(steps)s::text[])) || ARRAY(
         SELECT product_code FROM hold WHERE order_id IS NULL AND user_id = ANY(ARRAY(
           SELECT user_id FROM holder
            WHERE user_id = ANY(%(users)s::text[]) AND (expires_at <= now() OR user_id = ANY(%(clears)s::text[]))))))
 ORDER BY product_code FOR NO KEY UPDATE

-- ---- trip two: write. Rows are found by key in a LATERAL … OFFSET 0 and changed by their place: joined directly with
-- unnest, a plan made when a table was small walks through all of it. Their locks keep them in their places.

-- name: save_holders
UPDATE holder AS h SET revision = w.revision, first_held_at = w.first, expires_at = w.expires, expired = w.expired
  FROM unnest(%s::text[], %s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::boolean[])
       AS w(user_id, revision, first, expires, expired)
 CROSS JOIN LATERAL (SELECT ctid FROM holder WHERE user_id = w.user_id OFFSET 0) AS found
 WHERE h.ctid = found.ctid

-- name: save_holds
INSERT INTO hold (user_id, product_code, hold_quantity, price_minor, currency)
SELECT * FROM unnest(%s::text[], %s::text[], %s::int[], %s::bigint[], %s::text[])
    ON CONFLICT (user_id, product_code) WHERE order_id IS NULL
    DO UPDATE SET hold_quantity = excluded.hold_quantity,
                  price_minor = excluded.price_minor, currency = excluded.currency

-- name: drop_holds
DELETE FROM hold AS h
 USING unnest(%s::text[], %s::text[]) AS w(user_id, product_code)
 CROSS JOIN LATERAL (
   SELECT ctid FROM hold
    WHERE (user_id, product_code) = (w.user_id, w.product_code) AND order_id IS NULL OFFSET 0
 ) AS found
 WHERE h.ctid = found.ctid

-- name: save_reservations
-- No ON CONFLICT: an order that two shoppers have is nobody's mistake to pass over.
INSERT INTO reservation (order_id, user_id, purpose, revision)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[])

-- name: save_order_holds
INSERT INTO hold (user_id, product_code, hold_quantity, price_minor, currency, order_id, state)
SELECT * FROM unnest(%s::text[], %s::text[], %s::int[], %s::bigint[], %s::text[], %s::text[], %s::text[])
    ON CONFLICT (order_id, product_code) WHERE order_id IS NOT NULL DO UPDATE SET state = excluded.state

-- name: append_ledger
INSERT INTO stock_ledger (product_code, version, user_id, requestid, cause, received, held, sold, order_id)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::int[], %s::int[], %s::int[], %s::text[])

-- name: append_log
-- No ON CONFLICT: a second outcome for a request is a bug and must fail.
INSERT INTO request_log (user_id, requestid, command, outcome, revision)
SELECT u, r, c::jsonb, o::jsonb, v
  FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[]) AS w(u, r, c, o, v)

-- name: save_stock
UPDATE inventory AS i SET received = w.received, held = w.held, sold = w.sold, version = w.version
  FROM unnest(%s::text[], %s::int[], %s::int[], %s::int[], %s::bigint[]) AS w(product_code, received, held, sold, version)
 CROSS JOIN LATERAL (SELECT ctid FROM inventory WHERE product_code = w.product_code OFFSET 0) AS found
 WHERE i.ctid = found.ctid

-- name: note_untold
INSERT INTO untold_expiry (user_id, due, revision)
SELECT * FROM unnest(%s::text[], %s::timestamptz[], %s::bigint[]) ON CONFLICT DO NOTHING

-- ---- beside the agents

-- name: due_holders
-- `due_from` finds the candidates by index, `expires_at` decides.
SELECT user_id, expires_at, revision FROM holder
 WHERE due_from <= now() AND expires_at <= now()
 ORDER BY due_from LIMIT %(limit)s

-- name: untold_expiries
-- All there are: they are few, and soon gone.
SELECT user_id, due, revision FROM untold_expiry LIMIT %(limit)s

-- name: forget_untold
DELETE FROM untold_expiry
 WHERE (user_id, due, revision) IN (SELECT * FROM unnest(%s::text[], %s::timestamptz[], %s::bigint[]))

-- name: trim_log
DELETE FROM request_log WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM request_log WHERE decided_at < now() - %(keep)s::interval LIMIT %(limit)s))

-- name: make_ledger_months
SELECT make_ledger_months()

-- ---- the publisher

-- name: positions
-- Where it stopped, and the transaction before which all have ended: asked for before a read, nothing of them is
-- missing in it. A stored position from beyond the end of time is that of another cluster, whose dump was restored
-- here: begin again.
SELECT CASE WHEN position > pg_snapshot_xmax(pg_current_snapshot()) THEN '0' ELSE position::text END,
       pg_snapshot_xmin(pg_current_snapshot())::text
  FROM publisher

-- name: all_stock
SELECT product_code, received, held, sold, version FROM inventory ORDER BY product_code

-- name: changed_stock
SELECT product_code, received, held, sold, version FROM inventory
 WHERE product_code = ANY(ARRAY(
         SELECT DISTINCT product_code FROM stock_ledger WHERE tx >= %(position)s::text::xid8))
 ORDER BY product_code

-- name: changed_products
SELECT p.code, p.name, p.category, p.images, p.deleted, p.version, i.price_minor, i.currency
  FROM product AS p CROSS JOIN LATERAL (
    SELECT price_minor, currency FROM inventory WHERE product_code = p.code OFFSET 0) AS i
 WHERE p.tx >= %(position)s::text::xid8
 ORDER BY p.code

-- name: store_position
-- Not when somebody has asked for all of it again meanwhile.
UPDATE publisher SET position = %(position)s::text::xid8 WHERE position = %(stored)s::text::xid8

-- name: begin_again
UPDATE publisher SET position = '0'

-- ---- the catalogue

-- name: lock_listed_stock
SELECT product_code FROM inventory WHERE product_code = ANY(%(codes)s::text[]) ORDER BY product_code FOR NO KEY UPDATE

-- name: insert_stock
INSERT INTO inventory (product_code, received, price_minor, currency, version)
SELECT c, q, p, m, 1 FROM unnest(%(codes)s::text[], %(quantities)s::int[], %(prices)s::bigint[], %(currencies)s::text[])
       AS w(c, q, p, m) ORDER BY c
    ON CONFLICT DO NOTHING RETURNING product_code, received

-- name: append_received
INSERT INTO stock_ledger (product_code, version, cause, received, held, sold)
SELECT c, 1, 'seed', q, 0, 0 FROM unnest(%(codes)s::text[], %(quantities)s::int[]) AS w(c, q)

-- name: set_prices
UPDATE inventory AS i SET price_minor = w.p, currency = w.m
  FROM unnest(%(codes)s::text[], %(prices)s::bigint[], %(currencies)s::text[]) AS w(c, p, m)
 WHERE i.product_code = w.c AND (i.price_minor, i.currency) <> (w.p, w.m)
RETURNING i.product_code

-- name: put_products
-- One version up, and told again, only if something that the catalogue shows has changed.
INSERT INTO product AS p (code, name)
SELECT c, n FROM unnest(%(codes)s::text[], %(names)s::text[]) AS w(c, n) ORDER BY c
    ON CONFLICT (code) DO UPDATE
   SET name = excluded.name, version = p.version + 1, tx = pg_current_xact_id()
 WHERE p.name <> excluded.name OR p.code = ANY(%(repriced)s::text[])
RETURNING code, p.version

-- ---- the audit: each of these gives one row per violation, down to the outcomes

-- name: stock_that_differs
-- What was sold and came back from outside is stock once more, so it stays `sold` and is `received` again.
SELECT format('stock of %s: received %s held %s sold %s version %s; its ledger says %s %s %s, versions %s to %s in %s rows; its holds are %s, and %s sold, and %s came back',
              i.product_code, i.received, i.held, i.sold, i.version, l.received, l.held, l.sold, l.first, l.last, l.rows,
              coalesce(h.held, 0), coalesce(h.sold, 0), l.returned)
  FROM inventory AS i
  LEFT JOIN (SELECT product_code, coalesce(sum(hold_quantity) FILTER (WHERE state = 'PENDING'), 0) AS held,
                    coalesce(sum(hold_quantity) FILTER (WHERE state = 'COMMITTED'), 0) AS sold
               FROM hold GROUP BY product_code) AS h USING (product_code)
  LEFT JOIN (SELECT product_code, sum(received) AS received, sum(held) AS held, sum(sold) AS sold,
                    coalesce(sum(received) FILTER (WHERE order_id IS NOT NULL), 0) AS returned,
                    min(version) AS first, max(version) AS last, count(*) AS rows, count(DISTINCT version) AS versions
               FROM stock_ledger GROUP BY product_code) AS l USING (product_code)
 WHERE (i.received, i.held, i.sold) IS DISTINCT FROM (l.received, l.held, l.sold)
    OR i.held <> coalesce(h.held, 0) OR i.sold <> coalesce(h.sold, 0) + l.returned OR l.first <> 1
    OR i.version IS DISTINCT FROM l.last OR l.last <> l.rows OR l.rows <> l.versions

-- name: prefixes_out_of_bounds
SELECT format('ledger of %s at version %s: received %s held %s sold %s', product_code, version, received, held, sold)
  FROM (SELECT product_code, version, sum(received) OVER w AS received, sum(held) OVER w AS held, sum(sold) OVER w AS sold
          FROM stock_ledger WINDOW w AS (PARTITION BY product_code ORDER BY version)) AS prefix
 WHERE held < 0 OR sold < 0 OR held + sold > received

-- name: causes_without_a_decision
-- The log forgets after nine days.
SELECT format('ledger of %s at version %s: no decision %s of %s', product_code, version, requestid, user_id)
  FROM stock_ledger AS l
 WHERE user_id IS NOT NULL AND at > now() - interval '8 days'
   AND NOT EXISTS (SELECT FROM request_log AS r WHERE (r.user_id, r.requestid) = (l.user_id, l.requestid))

-- name: carts_that_differ
SELECT format('cart of %s at revision %s: %s lines, expires %s, log up to %s',
              c.user_id, h.revision, c.lines, coalesce(h.expires_at::text, 'never'), r.last)
  FROM (SELECT user_id, count(h.product_code) AS lines
          FROM (SELECT user_id FROM holder UNION SELECT user_id FROM hold WHERE order_id IS NULL) AS u
          LEFT JOIN (SELECT user_id, product_code FROM hold WHERE order_id IS NULL) AS h USING (user_id)
         GROUP BY user_id) AS c
  LEFT JOIN holder AS h USING (user_id)
  LEFT JOIN (SELECT user_id, max(revision) AS last FROM request_log GROUP BY user_id) AS r USING (user_id)
 WHERE h.user_id IS NULL OR (c.lines = 0) <> (h.expires_at IS NULL) OR r.last > h.revision
    OR h.expires_at < now() - interval '1 minute'

-- name: revisions_told_twice
-- An order whose units were taken from the shelves has left its cart alone.
SELECT format('cart of %s: revision %s is the outcome of %s requests', user_id, version, count(*))
  FROM (SELECT user_id, (outcome->>'version')::bigint AS version
          FROM request_log WHERE outcome->>'type' IN ('held', 'expired')
         UNION ALL
        SELECT user_id, revision FROM reservation AS r
         WHERE purpose IS NOT NULL
           AND NOT EXISTS (SELECT FROM stock_ledger AS l WHERE l.order_id = r.order_id AND l.cause = 'checkout')) AS told
 GROUP BY user_id, version HAVING count(*) > 1

-- name: orders_that_differ
-- Whose they are, and that all their holds have one state.
SELECT format('order %s of %s: its holds are of %s, and %s', order_id, coalesce(r.user_id, 'nobody'), h.users, h.states)
  FROM reservation AS r
 RIGHT JOIN (SELECT order_id, array_agg(DISTINCT user_id) AS users, array_agg(DISTINCT state) AS states
               FROM hold WHERE order_id IS NOT NULL GROUP BY order_id) AS h USING (order_id)
 WHERE h.users IS DISTINCT FROM ARRAY[r.user_id] OR cardinality(h.states) <> 1 OR r.purpose IS NULL

-- name: sales_that_differ
-- No sale without a hold of an order, and each once: the ledger's units of an order, sold and not come back, are its
-- holds, if those are sold.
SELECT format('order %s: its ledger has %s of %s sold, its holds %s', order_id, coalesce(l.sold, 0), product_code, coalesce(h.sold, 0))
  FROM (SELECT order_id, product_code, sum(sold - received) AS sold
          FROM stock_ledger WHERE order_id IS NOT NULL GROUP BY order_id, product_code) AS l
  FULL JOIN (SELECT order_id, product_code, CASE state WHEN 'COMMITTED' THEN hold_quantity ELSE 0 END AS sold
               FROM hold WHERE order_id IS NOT NULL) AS h USING (order_id, product_code)
 WHERE coalesce(l.sold, 0) <> coalesce(h.sold, 0) OR h.order_id IS NULL
 UNION ALL
SELECT format('ledger of %s at version %s: sold to no order', product_code, version)
  FROM stock_ledger WHERE sold <> 0 AND order_id IS NULL

-- name: commits_that_differ
-- What was committed is there: the same lines, at the prices that were told.
SELECT format('order %s of %s: its holds are not what request %s was told', r.outcome->>'order_id', r.user_id, r.requestid)
  FROM request_log AS r
 WHERE r.outcome->>'type' = 'committed'
   AND r.outcome->'lines' IS DISTINCT FROM (
     SELECT jsonb_agg(jsonb_build_object('product', product_code, 'quantity', hold_quantity,
                                         'price', jsonb_build_object('amount', price_minor, 'currency', currency))
                      ORDER BY product_code COLLATE "C")
       FROM hold WHERE order_id = r.outcome->>'order_id' AND user_id = r.user_id)

-- name: outcomes
SELECT user_id, requestid, outcome::text FROM request_log

-- name: figures
SELECT (SELECT count(*) FROM inventory) AS products,
       (SELECT coalesce(sum(received), 0)::bigint FROM inventory) AS received,
       (SELECT coalesce(sum(held), 0)::bigint FROM inventory) AS held,
       (SELECT coalesce(sum(sold), 0)::bigint FROM inventory) AS sold,
       (SELECT coalesce(sum(quantity - held), 0)::bigint FROM inventory) AS available,
       (SELECT count(*) FROM hold WHERE state = 'PENDING') AS holds,
       (SELECT count(*) FROM reservation) AS orders,
       (SELECT count(*) FROM holder WHERE expires_at IS NOT NULL) AS carts,
       (SELECT count(*) FROM request_log) AS decisions,
       (SELECT count(*) FROM stock_ledger) AS changes

-- name: digest_of_stock
SELECT concat_ws(' ', product_code, received, held, sold, price_minor, currency, version)
  FROM inventory ORDER BY product_code COLLATE "C"

-- name: digest_of_holds
SELECT concat_ws(' ', user_id, product_code, hold_quantity, price_minor, currency, state, order_id)
  FROM hold ORDER BY user_id COLLATE "C", product_code COLLATE "C", order_id COLLATE "C"

-- name: digest_of_reservations
SELECT concat_ws(' ', order_id, user_id, purpose, revision) FROM reservation ORDER BY order_id COLLATE "C"

-- name: digest_of_decisions
SELECT concat_ws(' ', user_id, requestid, command - 'due', outcome - 'expires_at', revision)
  FROM request_log ORDER BY user_id COLLATE "C", requestid COLLATE "C"

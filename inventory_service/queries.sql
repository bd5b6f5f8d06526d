-- Every statement of the inventory service, by name. The statements of the two round trips must be lookups by key; a
-- test checks their plans.

-- ---- round trip one: lock and read. Each statement has a snapshot of its own. After waiting for a lock, the next
-- statement therefore reads the rows that the previous lock owner committed.

-- name: insert_missing_holders
-- Create the row of each user who has none, so that every user of the batch has a row to lock.
INSERT INTO holder (user_id) SELECT u FROM unnest(%(users)s::text[]) AS u ORDER BY u ON CONFLICT DO NOTHING

-- name: lock_holders
-- Lock and read the users' rows. All statements lock users in this order, so that no two batches wait for each other.
SELECT now(), user_id, revision, first_held_at, expires_at, expired
  FROM holder WHERE user_id = ANY(%(users)s::text[]) ORDER BY user_id FOR NO KEY UPDATE

-- name: stored_outcomes
-- Read the log entries of some requests. LATERAL … OFFSET 0 forces an index lookup per row: a plain join with unnest
-- was planned as a scan of the whole log.
SELECT l.user_id, l.requestid, l.command, l.outcome::text
  FROM unnest(%(log_users)s::text[], %(log_ids)s::text[]) AS r(user_id, requestid)
 CROSS JOIN LATERAL (
   SELECT user_id, requestid, command, outcome
     FROM request_log WHERE (user_id, requestid) = (r.user_id, r.requestid) OFFSET 0
 ) AS l

-- name: open_holds
-- Read the cart lines of some users, and what their orders hold that is not sold yet.
SELECT user_id, product_code, hold_quantity, price_minor, currency, true
  FROM hold WHERE user_id = ANY(%(users)s::text[]) AND order_id IS NULL
 UNION ALL
SELECT user_id, product_code, hold_quantity, price_minor, currency, false
  FROM hold WHERE user_id = ANY(%(users)s::text[]) AND order_id IS NOT NULL AND state = 'PENDING'

-- name: order_holds
-- Read the current and former holds of some orders; used only by batches about orders. The batch does not lock the rows
-- of other users' orders, and reads them only to find that they belong to another user.
SELECT r.order_id, r.user_id, r.purpose, r.revision, h.*
  FROM reservation AS r
  LEFT JOIN LATERAL (
    SELECT product_code, hold_quantity, price_minor, currency, state FROM hold WHERE order_id = r.order_id OFFSET 0
  ) AS h ON true
 WHERE r.order_id = ANY(%(orders)s::text[])
 ORDER BY r.order_id, h.product_code COLLATE "C"

-- name: lock_stock
-- Lock and read the stock of all products that the batch may change: the requested ones, those of orders to be sold or
-- released, and those held by due or cleared carts. now() is the start of the transaction, so a cart is due here if
-- and only if it is due in the fold. The most contended rows are locked last.
SELECT product_code, received, held, sold, price_minor, currency, version,
       (SELECT NOT deleted FROM product WHERE code = product_code) IS TRUE
  FROM inventory
 WHERE product_code = ANY(%(codes)s::text[] || ARRAY(
         SELECT product_code FROM hold WHERE order_id = ANY(%(steps)s::text[])) || ARRAY(
         SELECT product_code FROM hold WHERE order_id IS NULL AND user_id = ANY(ARRAY(
           SELECT user_id FROM holder
            WHERE user_id = ANY(%(users)s::text[]) AND (expires_at <= now() OR user_id = ANY(%(clears)s::text[]))))))
 ORDER BY product_code FOR NO KEY UPDATE

-- ---- round trip two: write. Rows are found by key in a LATERAL … OFFSET 0 and updated by ctid: with a direct join, a
-- plan made while a table was small scans all of it. The rows are locked, so their ctids do not change.

-- name: save_holders
-- Update the users' rows: revision and expiry of their carts.
UPDATE holder AS h SET revision = w.revision, first_held_at = w.first, expires_at = w.expires, expired = w.expired
  FROM unnest(%s::text[], %s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::boolean[])
       AS w(user_id, revision, first, expires, expired)
 CROSS JOIN LATERAL (SELECT ctid FROM holder WHERE user_id = w.user_id OFFSET 0) AS found
 WHERE h.ctid = found.ctid

-- name: save_holds
-- Insert or update cart lines.
INSERT INTO hold (user_id, product_code, hold_quantity, price_minor, currency)
SELECT * FROM unnest(%s::text[], %s::text[], %s::int[], %s::bigint[], %s::text[])
    ON CONFLICT (user_id, product_code) WHERE order_id IS NULL
    DO UPDATE SET hold_quantity = excluded.hold_quantity,
                  price_minor = excluded.price_minor, currency = excluded.currency

-- name: delete_holds
-- Delete cart lines.
DELETE FROM hold AS h
 USING unnest(%s::text[], %s::text[]) AS w(user_id, product_code)
 CROSS JOIN LATERAL (
   SELECT ctid FROM hold
    WHERE (user_id, product_code) = (w.user_id, w.product_code) AND order_id IS NULL OFFSET 0
 ) AS found
 WHERE h.ctid = found.ctid

-- name: save_reservations
-- Insert orders and reservations. No ON CONFLICT: one order id of two users is an error and must fail.
INSERT INTO reservation (order_id, user_id, purpose, revision)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[])

-- name: save_order_holds
-- Insert the holds of orders, or update their state.
INSERT INTO hold (user_id, product_code, hold_quantity, price_minor, currency, order_id, state)
SELECT * FROM unnest(%s::text[], %s::text[], %s::int[], %s::bigint[], %s::text[], %s::text[], %s::text[])
    ON CONFLICT (order_id, product_code) WHERE order_id IS NOT NULL DO UPDATE SET state = excluded.state

-- name: append_ledger
-- Append changes of stock to the ledger.
INSERT INTO stock_ledger (product_code, version, user_id, requestid, cause, received, held, sold, order_id)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::int[], %s::int[], %s::int[], %s::text[])

-- name: append_log
-- Append outcomes to the log. No ON CONFLICT: a second outcome for a request is a bug and must fail.
INSERT INTO request_log (user_id, requestid, command, outcome, revision)
SELECT u, r, c::jsonb, o::jsonb, v
  FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[]) AS w(u, r, c, o, v)

-- name: save_stock
-- Update stock rows.
UPDATE inventory AS i SET received = w.received, held = w.held, sold = w.sold, version = w.version
  FROM unnest(%s::text[], %s::int[], %s::int[], %s::int[], %s::bigint[]) AS w(product_code, received, held, sold, version)
 CROSS JOIN LATERAL (SELECT ctid FROM inventory WHERE product_code = w.product_code OFFSET 0) AS found
 WHERE i.ctid = found.ctid

-- name: insert_undelivered_expiries
-- Record expiries that a request found, until an expiry request has been sent for them.
INSERT INTO untold_expiry (user_id, due, revision)
SELECT * FROM unnest(%s::text[], %s::timestamptz[], %s::bigint[]) ON CONFLICT DO NOTHING

-- ---- background: expiry and retention

-- name: due_holders
-- Find carts that are due. The index on `due_from` finds the candidates, `expires_at` decides.
SELECT user_id, expires_at, revision FROM holder
 WHERE due_from <= now() AND expires_at <= now()
 ORDER BY due_from LIMIT %(limit)s

-- name: undelivered_expiries
-- Find recorded expiries, without a condition on time: they are few, and soon deleted.
SELECT user_id, due, revision FROM untold_expiry LIMIT %(limit)s

-- name: delete_undelivered_expiries
-- Delete recorded expiries for which an expiry request has been sent.
DELETE FROM untold_expiry
 WHERE (user_id, due, revision) IN (SELECT * FROM unnest(%s::text[], %s::timestamptz[], %s::bigint[]))

-- name: delete_old_outcomes
-- Delete some outcomes that are older than the retention period.
DELETE FROM request_log WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM request_log WHERE decided_at < now() - %(keep)s::interval LIMIT %(limit)s))

-- name: make_ledger_months
-- Create the ledger's partitions of this month and the next two.
SELECT make_ledger_months()

-- ---- background: the publisher

-- name: positions
-- Read the stored position, and the transaction number below which all transactions have ended. Run this before the
-- reads of a pass: they then contain all changes of those transactions. A stored position above the current transaction
-- number comes from the dump of another cluster that was restored here, so publishing starts again from 0.
SELECT CASE WHEN position > pg_snapshot_xmax(pg_current_snapshot()) THEN '0' ELSE position::text END,
       pg_snapshot_xmin(pg_current_snapshot())::text
  FROM publisher

-- name: all_stock
-- Read the stock of every product.
SELECT product_code, received, held, sold, version FROM inventory ORDER BY product_code

-- name: changed_stock
-- Read the stock of the products that changed since a position.
SELECT product_code, received, held, sold, version FROM inventory
 WHERE product_code = ANY(ARRAY(
         SELECT DISTINCT product_code FROM stock_ledger WHERE tx >= %(position)s::text::xid8))
 ORDER BY product_code

-- name: changed_products
-- Read the products whose catalogue entry changed since a position.
SELECT p.code, p.name, p.category, p.images, p.deleted, p.version, i.price_minor, i.currency
  FROM product AS p CROSS JOIN LATERAL (
    SELECT price_minor, currency FROM inventory WHERE product_code = p.code OFFSET 0) AS i
 WHERE p.tx >= %(position)s::text::xid8
 ORDER BY p.code

-- name: store_position
-- Store the new position, unless `republish` has reset it meanwhile.
UPDATE publisher SET position = %(position)s::text::xid8 WHERE position = %(stored)s::text::xid8

-- name: reset_position
-- Make the publisher send the state of every product again.
UPDATE publisher SET position = '0'

-- ---- the catalogue

-- name: lock_listed_stock
-- Lock the stock rows of a catalogue file, in the same order as all other statements.
SELECT product_code FROM inventory WHERE product_code = ANY(%(codes)s::text[]) ORDER BY product_code FOR NO KEY UPDATE

-- name: insert_stock
-- Insert the stock of new products, and return it.
INSERT INTO inventory (product_code, received, price_minor, currency, version)
SELECT c, q, p, m, 1 FROM unnest(%(codes)s::text[], %(quantities)s::int[], %(prices)s::bigint[], %(currencies)s::text[])
       AS w(c, q, p, m) ORDER BY c
    ON CONFLICT DO NOTHING RETURNING product_code, received

-- name: append_received
-- Append the initial stock of new products to the ledger.
INSERT INTO stock_ledger (product_code, version, cause, received, held, sold)
SELECT c, 1, 'seed', q, 0, 0 FROM unnest(%(codes)s::text[], %(quantities)s::int[]) AS w(c, q)

-- name: set_prices
-- Update prices that differ from the file, and return the products.
UPDATE inventory AS i SET price_minor = w.p, currency = w.m
  FROM unnest(%(codes)s::text[], %(prices)s::bigint[], %(currencies)s::text[]) AS w(c, p, m)
 WHERE i.product_code = w.c AND (i.price_minor, i.currency) <> (w.p, w.m)
RETURNING i.product_code

-- name: put_products
-- Insert or update products; one that was withdrawn is for sale again. Only a change of a visible field raises the version and publishes the product again.
INSERT INTO product AS p (code, name)
SELECT c, n FROM unnest(%(codes)s::text[], %(names)s::text[]) AS w(c, n) ORDER BY c
    ON CONFLICT (code) DO UPDATE
   SET name = excluded.name, deleted = false, version = p.version + 1, tx = pg_current_xact_id()
 WHERE p.name <> excluded.name OR p.deleted OR p.code = ANY(%(repriced)s::text[])
RETURNING code, p.version

-- name: withdraw_products
-- Take products out of the catalogue and publish that. Stock, holds and history stay.
UPDATE product SET deleted = true, version = version + 1, tx = pg_current_xact_id()
 WHERE code = ANY(%(codes)s::text[]) AND NOT deleted

-- ---- the audit: each query up to `commit_mismatches` returns one sentence per violation

-- name: stock_mismatches
-- Compare stock with the ledger and with holds. Units that were shipped and returned stay `sold` and are `received`
-- again.
SELECT format('stock of %s: received %s held %s sold %s version %s; its ledger says %s %s %s, versions %s to %s in %s rows; its holds are %s, with %s sold and %s returned',
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

-- name: ledger_prefixes_out_of_bounds
-- Check that no version of a product's stock was oversold or negative, by summing the ledger up to each version.
SELECT format('ledger of %s at version %s: received %s held %s sold %s', product_code, version, received, held, sold)
  FROM (SELECT product_code, version, sum(received) OVER w AS received, sum(held) OVER w AS held, sum(sold) OVER w AS sold
          FROM stock_ledger WINDOW w AS (PARTITION BY product_code ORDER BY version)) AS prefix
 WHERE held < 0 OR sold < 0 OR held + sold > received

-- name: ledger_rows_without_decision
-- Check that every recent change of stock has a decision in the log, which keeps nine days.
SELECT format('ledger of %s at version %s: no decision %s of %s', product_code, version, requestid, user_id)
  FROM stock_ledger AS l
 WHERE user_id IS NOT NULL AND at > now() - interval '8 days'
   AND NOT EXISTS (SELECT FROM request_log AS r WHERE (r.user_id, r.requestid) = (l.user_id, l.requestid))

-- name: cart_mismatches
-- Check that users' rows agree with their lines and the log, and that no cart is overdue.
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

-- name: duplicate_revisions
-- Check that no revision of a cart is the outcome of two requests. Orders with units taken from stock leave the cart
-- alone, and are skipped.
SELECT format('cart of %s: revision %s is the outcome of %s requests', user_id, version, count(*))
  FROM (SELECT user_id, (outcome->>'version')::bigint AS version
          FROM request_log WHERE outcome->>'type' IN ('held', 'expired')
         UNION ALL
        SELECT user_id, revision FROM reservation AS r
         WHERE purpose IS NOT NULL
           AND NOT EXISTS (SELECT FROM stock_ledger AS l WHERE l.order_id = r.order_id AND l.cause = 'checkout')) AS published
 GROUP BY user_id, version HAVING count(*) > 1

-- name: order_mismatches
-- Check that all holds of an order belong to its user and have one state.
SELECT format('order %s of %s: its holds are of %s, and %s', order_id, coalesce(r.user_id, 'no user'), h.users, h.states)
  FROM reservation AS r
 RIGHT JOIN (SELECT order_id, array_agg(DISTINCT user_id) AS users, array_agg(DISTINCT state) AS states
               FROM hold WHERE order_id IS NOT NULL GROUP BY order_id) AS h USING (order_id)
 WHERE h.users IS DISTINCT FROM ARRAY[r.user_id] OR cardinality(h.states) <> 1 OR r.purpose IS NULL

-- name: sale_mismatches
-- Check that every sale has a hold of an order, once: the units of an order that the ledger has as sold and not
-- returned are those of its sold holds.
SELECT format('order %s: its ledger has %s of %s sold, its holds %s', order_id, coalesce(l.sold, 0), product_code, coalesce(h.sold, 0))
  FROM (SELECT order_id, product_code, sum(sold - received) AS sold
          FROM stock_ledger WHERE order_id IS NOT NULL GROUP BY order_id, product_code) AS l
  FULL JOIN (SELECT order_id, product_code, CASE state WHEN 'COMMITTED' THEN hold_quantity ELSE 0 END AS sold
               FROM hold WHERE order_id IS NOT NULL) AS h USING (order_id, product_code)
 WHERE coalesce(l.sold, 0) <> coalesce(h.sold, 0) OR h.order_id IS NULL
 UNION ALL
SELECT format('ledger of %s at version %s: sold to no order', product_code, version)
  FROM stock_ledger WHERE sold <> 0 AND order_id IS NULL

-- name: commit_mismatches
-- Check that committed orders have the lines and prices of their outcome.
SELECT format('order %s of %s: its holds differ from the outcome of request %s', r.outcome->>'order_id', r.user_id, r.requestid)
  FROM request_log AS r
 WHERE r.outcome->>'type' = 'committed'
   AND r.outcome->'lines' IS DISTINCT FROM (
     SELECT jsonb_agg(jsonb_build_object('product', product_code, 'quantity', hold_quantity,
                                         'price', jsonb_build_object('amount', price_minor, 'currency', currency))
                      ORDER BY product_code COLLATE "C")
       FROM hold WHERE order_id = r.outcome->>'order_id' AND user_id = r.user_id)

-- name: order_accounts
-- Read the holds of every order, for a comparison with the other services. A reservation is not an order, and an order
-- without a purpose was released before its commit arrived.
SELECT r.order_id, r.user_id, min(h.state),
       coalesce(array_agg(h.product_code ORDER BY h.product_code) FILTER (WHERE h.product_code IS NOT NULL), '{}'),
       coalesce(array_agg(h.hold_quantity ORDER BY h.product_code) FILTER (WHERE h.product_code IS NOT NULL), '{}'),
       coalesce(array_agg(h.price_minor ORDER BY h.product_code) FILTER (WHERE h.product_code IS NOT NULL), '{}'),
       coalesce(array_agg(h.currency ORDER BY h.product_code) FILTER (WHERE h.product_code IS NOT NULL), '{}'),
       extract(epoch FROM greatest(r.reserved_at, max(l.at)))::float8
  FROM reservation AS r
  LEFT JOIN hold AS h USING (order_id)
  LEFT JOIN (SELECT order_id, max(at) AS at FROM stock_ledger WHERE order_id IS NOT NULL GROUP BY order_id) AS l
 USING (order_id)
 WHERE r.purpose = 'order'
 GROUP BY r.order_id, r.user_id, r.reserved_at

-- name: outcomes
-- Read the whole log, to compare it with the topics.
SELECT user_id, requestid, outcome::text FROM request_log

-- name: figures
-- Count the audited rows.
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
-- The lines of the digest: stock.
SELECT concat_ws(' ', product_code, received, held, sold, price_minor, currency, version)
  FROM inventory ORDER BY product_code COLLATE "C"

-- name: digest_of_holds
-- The lines of the digest: holds.
SELECT concat_ws(' ', user_id, product_code, hold_quantity, price_minor, currency, state, order_id)
  FROM hold ORDER BY user_id COLLATE "C", product_code COLLATE "C", order_id COLLATE "C"

-- name: digest_of_reservations
-- The lines of the digest: orders and reservations.
SELECT concat_ws(' ', order_id, user_id, purpose, revision) FROM reservation ORDER BY order_id COLLATE "C"

-- name: digest_of_decisions
-- The lines of the digest: outcomes, without times.
SELECT concat_ws(' ', user_id, requestid, command - 'due', outcome - 'expires_at', revision)
  FROM request_log ORDER BY user_id COLLATE "C", requestid COLLATE "C"

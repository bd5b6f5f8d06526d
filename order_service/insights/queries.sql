-- The SQL statements of the insights, by name.

-- name: insert_keys
-- Store keys and return the new ones. Insert in key order, so that two batches never deadlock.
INSERT INTO counted (key, until)
SELECT key, until FROM unnest(%(keys)s::uuid[], %(until)s::timestamptz[]) AS given (key, until) ORDER BY key
ON CONFLICT (key) DO NOTHING RETURNING key::text;

-- name: add_tallies
-- Add numbers to the windows, in key order.
INSERT INTO tally (by, start, figure, currency, value)
SELECT by, start, figure, currency, value
  FROM unnest(%(by)s::text[], %(start)s::timestamptz[], %(figure)s::text[], %(currency)s::text[], %(value)s::bigint[])
       AS given (by, start, figure, currency, value)
 ORDER BY by, start, figure, currency
ON CONFLICT (by, start, figure, currency) DO UPDATE SET value = tally.value + excluded.value;

-- name: touch_windows
-- Increase the versions of changed windows.
INSERT INTO tally_window (by, start, version)
SELECT by, start, 1 FROM unnest(%(by)s::text[], %(start)s::timestamptz[]) AS given (by, start) ORDER BY by, start
ON CONFLICT (by, start) DO UPDATE SET version = tally_window.version + 1;

-- name: unpublished_windows
-- Windows with unpublished changes, the oldest first, with all their figures from one snapshot.
SELECT w.by, w.start, w.version, array_agg(t.figure), array_agg(t.currency), array_agg(t.value)
  FROM (SELECT by, start, version FROM tally_window WHERE told < version ORDER BY start LIMIT %(limit)s) AS w
  JOIN tally t ON t.by = w.by AND t.start = w.start
 GROUP BY w.by, w.start, w.version;

-- name: mark_windows_published
-- Lock windows in the same order as touch_windows does.
WITH done AS (SELECT * FROM unnest(%(by)s::text[], %(start)s::timestamptz[], %(version)s::bigint[])
                     AS done (by, start, version)),
     locked AS MATERIALIZED (
         SELECT w.by, w.start, done.version FROM tally_window w JOIN done USING (by, start)
          ORDER BY w.by, w.start FOR UPDATE OF w)
UPDATE tally_window SET told = greatest(tally_window.told, locked.version)
  FROM locked WHERE tally_window.by = locked.by AND tally_window.start = locked.start;

-- name: delete_expired_keys
-- Delete some keys whose events can no longer be redelivered.
DELETE FROM counted WHERE key IN (SELECT key FROM counted WHERE until < now() ORDER BY until LIMIT %(limit)s);

-- name: insert_baskets
-- Insert baskets of orders that are not known yet, in key order.
INSERT INTO basket (order_id) SELECT unnest(%(orders)s::text[]) AS order_id ORDER BY order_id
ON CONFLICT (order_id) DO NOTHING;

-- name: lock_baskets
-- Lock some baskets by ascending key.
SELECT order_id, products, cancelled FROM basket WHERE order_id = ANY(%(orders)s) ORDER BY order_id FOR UPDATE;

-- name: save_baskets
-- Store changed baskets.
UPDATE basket SET products = (SELECT array_agg(code) FROM jsonb_array_elements_text(done.products) AS code),
       cancelled = done.cancelled
  FROM unnest(%(orders)s::text[], %(products)s::jsonb[], %(cancelled)s::boolean[])
       AS done (order_id, products, cancelled)
 WHERE basket.order_id = done.order_id;

-- name: add_orders
-- Change the number of orders.
UPDATE basket_total SET orders = orders + %(orders)s;

-- name: add_products
-- Change the numbers of orders with each product, in key order.
INSERT INTO bought (product, orders)
SELECT product, orders FROM unnest(%(products)s::text[], %(orders)s::bigint[]) AS given (product, orders)
 ORDER BY product
ON CONFLICT (product) DO UPDATE SET orders = bought.orders + excluded.orders, changes = bought.changes + 1;

-- name: add_pairs
-- Change the numbers of orders with each pair of products, in key order.
INSERT INTO bought_together (first, second, orders)
SELECT first, second, orders FROM unnest(%(first)s::text[], %(second)s::text[], %(orders)s::bigint[])
       AS given (first, second, orders)
 ORDER BY first COLLATE "C", second COLLATE "C"
ON CONFLICT (first, second) DO UPDATE SET orders = bought_together.orders + excluded.orders;

-- name: next_unpublished
-- Products with unpublished changes. Each list gets a new version.
WITH next AS MATERIALIZED (SELECT product FROM bought WHERE told < changes ORDER BY product LIMIT %(limit)s FOR UPDATE)
UPDATE bought SET version = version + 1 FROM next WHERE bought.product = next.product
RETURNING bought.product, bought.version;

-- name: next_stale
-- Products whose last list used less than 90 percent of the present orders: every measure depends on that number.
WITH next AS MATERIALIZED (
    SELECT product FROM bought
     WHERE told_of * 10 < (SELECT orders FROM basket_total) * 9 ORDER BY product LIMIT %(limit)s FOR UPDATE)
UPDATE bought SET version = version + 1 FROM next WHERE bought.product = next.product
RETURNING bought.product, bought.version;

-- name: related
-- The most related products of some products, with the numbers of orders with both and with the other one.
SELECT b.product, b.changes, b.orders, total.orders, r.other, r.together, r.orders
  FROM bought b CROSS JOIN basket_total total
  LEFT JOIN LATERAL (
       SELECT pair.other, pair.orders AS together, o.orders
         FROM (SELECT second AS other, orders FROM bought_together WHERE first = b.product
               UNION ALL SELECT first, orders FROM bought_together WHERE second = b.product) AS pair
         JOIN bought o ON o.product = pair.other
        WHERE pair.orders > 0 AND pair.orders / nullif(total.orders, 0)::float8 >= %(min_support)s
          AND pair.orders::numeric * total.orders >= b.orders::numeric * o.orders
        ORDER BY pair.orders DESC, o.orders, pair.other COLLATE "C" LIMIT %(most)s) AS r ON true
 WHERE b.product = ANY(%(products)s)
 ORDER BY b.product, r.together DESC, r.orders, r.other COLLATE "C";

-- name: mark_products_published
-- Store up to which change, and from how many orders, the lists of products are published.
WITH done AS (SELECT * FROM unnest(%(products)s::text[], %(changes)s::bigint[], %(orders)s::bigint[])
                     AS done (product, changes, orders)),
     locked AS MATERIALIZED (
         SELECT product, done.changes, done.orders FROM bought JOIN done USING (product)
          ORDER BY product FOR UPDATE OF bought)
UPDATE bought SET told = greatest(bought.told, locked.changes), told_of = locked.orders
  FROM locked WHERE bought.product = locked.product;

-- name: republish_all
-- Schedule all windows and lists for publication.
WITH figures AS (UPDATE tally_window SET told = 0 RETURNING 1), lists AS (UPDATE bought SET told = 0 RETURNING 1)
SELECT (SELECT count(*) FROM figures), (SELECT count(*) FROM lists);

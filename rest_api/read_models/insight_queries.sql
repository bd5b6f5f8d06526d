-- name: put_related
-- Insert or update the related products of some products; an older version changes nothing.
INSERT INTO related (product, version, items)
SELECT * FROM unnest(%(product)s::text[], %(version)s::bigint[], %(items)s::jsonb[]) AS input (product, version, items)
 ORDER BY product
ON CONFLICT (product) DO UPDATE SET version = excluded.version, items = excluded.items
 WHERE related.version < excluded.version;

-- name: put_figures
-- Insert or update the figures of some windows; an older version changes nothing.
INSERT INTO figures (by, start, version, data)
SELECT * FROM unnest(%(by)s::text[], %(start)s::timestamptz[], %(version)s::bigint[], %(data)s::jsonb[])
       AS input (by, start, version, data)
 ORDER BY by, start
ON CONFLICT (by, start) DO UPDATE SET version = excluded.version, data = excluded.data
 WHERE figures.version < excluded.version;

-- name: related
-- The related products that are still for sale, in stored order: most often bought together first.
SELECT p.code, p.name, p.category, p.amount, p.currency, p.images, p.available, p.version, p.stock_version,
       (item->>'support')::float8, (item->>'confidence')::float8, (item->>'lift')::float8
  FROM related, jsonb_array_elements(items) WITH ORDINALITY AS related_item (item, n)
  JOIN product p ON p.code = item->>'product' AND p.version > 0 AND NOT p.deleted
 WHERE related.product = %(product)s
 ORDER BY n;

-- name: figures
-- The windows of one length that begin in a time range, after a cursor.
SELECT data::text FROM figures
 WHERE by = %(by)s AND start >= %(from)s AND start < %(to)s AND start > %(after)s
 ORDER BY start LIMIT %(limit)s;

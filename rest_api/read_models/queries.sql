-- name: put_products
-- Insert or update products from the catalogue; an older version changes nothing.
INSERT INTO product (code, version, name, category, amount, currency, images, deleted, words, words_version, words_of)
SELECT code, version, name, category, amount, currency,
       ARRAY(SELECT jsonb_array_elements_text(images)), deleted,
       array_to_tsvector(ARRAY(SELECT jsonb_array_elements_text(words))), %(words_version)s, name
  FROM unnest(%(code)s::text[], %(version)s::bigint[], %(name)s::text[], %(category)s::text[], %(amount)s::bigint[],
              %(currency)s::text[], %(images)s::jsonb[], %(deleted)s::boolean[], %(words)s::jsonb[])
       AS input (code, version, name, category, amount, currency, images, deleted, words)
 ORDER BY code
ON CONFLICT (code) DO UPDATE
   SET version = excluded.version, name = excluded.name, category = excluded.category, amount = excluded.amount,
       currency = excluded.currency, images = excluded.images, deleted = excluded.deleted, words = excluded.words,
       words_version = excluded.words_version, words_of = excluded.words_of
 WHERE product.version < excluded.version;

-- name: put_vocabulary
INSERT INTO vocabulary (word, keys)
SELECT word, ARRAY(SELECT jsonb_array_elements_text(keys))
  FROM unnest(%(word)s::text[], %(keys)s::jsonb[]) AS input (word, keys)
 ORDER BY word
ON CONFLICT (word) DO NOTHING;

-- name: unindexed
-- The next products, in order, whose words are of another name or of another version of the rules.
SELECT code, name FROM product
 WHERE version > 0 AND code > %(code)s AND (words_version <> %(words_version)s OR words_of IS DISTINCT FROM name)
 ORDER BY code LIMIT %(limit)s;

-- name: index_products
-- Store the words of products that still have the names that were read.
UPDATE product
   SET words = array_to_tsvector(ARRAY(SELECT jsonb_array_elements_text(input.words))),
       words_version = %(words_version)s, words_of = input.name
  FROM unnest(%(code)s::text[], %(name)s::text[], %(words)s::jsonb[]) AS input (code, name, words)
 WHERE product.code = input.code AND product.name = input.name;

-- name: word_counts
-- In how many products each word occurs, up to a hundred.
SELECT word, (SELECT count(*) FROM (
           SELECT FROM product WHERE words @@ query::tsquery AND version > 0 AND NOT deleted LIMIT 100) AS found)
  FROM unnest(%(word)s::text[], %(query)s::text[]) AS input (word, query);

-- name: similar_words
-- The words that share a key with a misspelled one. A name of one word has at most some dozens of them.
SELECT word FROM vocabulary WHERE keys && %(keys)s::text[] LIMIT 200;

-- name: put_stock
-- Insert or update stock levels; an older version changes nothing.
INSERT INTO product (code, available, stock_version)
SELECT code, available, version
  FROM unnest(%(code)s::text[], %(available)s::integer[], %(version)s::bigint[]) AS input (code, available, version)
 ORDER BY code
ON CONFLICT (code) DO UPDATE SET available = excluded.available, stock_version = excluded.stock_version
 WHERE product.stock_version < excluded.stock_version;

-- name: put_positions
-- Store read positions. Another edge on this schema may be further ahead: the greater offset stays.
INSERT INTO position (topic, partition, next_offset)
SELECT * FROM unnest(%(topic)s::text[], %(partition)s::integer[], %(next_offset)s::bigint[]) AS input (topic, partition, next_offset)
 ORDER BY 1, 2
ON CONFLICT (topic, partition) DO UPDATE SET next_offset = greatest(position.next_offset, excluded.next_offset);

-- name: positions
SELECT topic, partition, next_offset FROM position WHERE topic = ANY(%(topics)s);

-- name: forget_position
-- The topic has been recreated, so the stored offset lies beyond its end.
DELETE FROM position WHERE topic = %(topic)s AND partition = %(partition)s;

-- name: stock_levels
-- All stock levels, for the sockets that watch them.
SELECT code, available, stock_version FROM product WHERE stock_version > 0;

-- name: product_names
SELECT code, name FROM product WHERE code = ANY(%(codes)s) AND version > 0;

-- name: product
SELECT code, name, category, amount, currency, images, available, version, stock_version
  FROM product WHERE code = %(code)s AND version > 0 AND NOT deleted;

-- name: products
-- One page of the catalogue after a cursor. `store.py` fills in the braces from a fixed table.
SELECT code, name, category, amount, currency, images, available, version, stock_version
  FROM product
 WHERE version > 0 AND NOT deleted {conditions}
 ORDER BY {column} {direction}, code {direction}
 LIMIT %(limit)s;

-- name: count_products
-- The number of products that match; it stops counting at a limit.
SELECT count(*) FROM (SELECT FROM product WHERE version > 0 AND NOT deleted {conditions} LIMIT %(limit)s) AS found;

-- name: delete_old_claims
-- Delete some claims that are older than two days, oldest first.
DELETE FROM claim WHERE (user_id, id) IN (
    SELECT user_id, id FROM claim WHERE created_at < now() - interval '48 hours'
     ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED);

-- name: delete_refused_orders
-- Delete some orders that were refused before any stock was held for them, 90 days later, as long as topics keep events.
WITH old AS (
    SELECT order_id FROM placed_order
     WHERE lines = '[]' AND status IN ('placed', 'cancelled') AND created_at < now() - interval '90 days'
     ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED),
events AS (DELETE FROM order_event USING old WHERE order_event.order_id = old.order_id),
steps AS (DELETE FROM order_step USING old WHERE order_step.order_id = old.order_id)
DELETE FROM placed_order USING old WHERE placed_order.order_id = old.order_id;

-- name: delete_ended_sessions
-- Delete some sessions of which every token has expired.
DELETE FROM guest_session WHERE user_id IN (
    SELECT user_id FROM guest_session WHERE ends_at < now() - interval '1 hour'
     ORDER BY ends_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED);

-- name: replace_tokens
-- Remember that a guest has a newer token, once per overlap: those before `issued_at` end an overlap later.
INSERT INTO guest_session AS known (user_id, issued_at, ends_at)
VALUES (%(user_id)s, %(issued_at)s, %(ends_at)s)
ON CONFLICT (user_id) DO UPDATE
   SET valid_from = CASE WHEN excluded.issued_at - known.issued_at >= %(overlap)s
                         THEN known.issued_at ELSE known.valid_from END,
       issued_at = CASE WHEN excluded.issued_at - known.issued_at >= %(overlap)s
                        THEN excluded.issued_at ELSE known.issued_at END,
       changed_at = now(), ends_at = greatest(known.ends_at, excluded.ends_at)
RETURNING valid_from, issued_at;

-- name: guest_session
SELECT valid_from, issued_at FROM guest_session WHERE user_id = %(user_id)s;

-- name: changed_sessions
-- The sessions that another edge may have changed since the last look.
SELECT user_id, valid_from, issued_at FROM guest_session WHERE changed_at > now() - make_interval(secs => %(seconds)s);

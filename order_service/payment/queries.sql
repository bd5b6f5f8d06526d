-- The SQL statements of payment, by name. Those of the job queues are in infrastructure/storage/job_queue.py.

-- ---- storing requests

-- name: insert_missing
-- Insert by ascending key, as everywhere, so that two batches never deadlock. A new row of a payment is a query;
-- save_step sets the requested intent in the same transaction.
INSERT INTO step (key, order_id, user_id, payment_id, wish)
SELECT k, o, u, p, CASE WHEN k = p THEN 'query' ELSE 'refund' END
  FROM unnest(%(keys)s::text[], %(orders)s::text[], %(users)s::text[], %(payments)s::text[]) AS w(k, o, u, p)
 ORDER BY k
    ON CONFLICT DO NOTHING

-- name: lock_steps
-- Lock some operations by ascending key.
SELECT key, order_id, user_id, payment_id, wish, amount, currency, token, state, settled_amount, settled_currency,
       reason, doubted_at, settled_at, wanted_at, requestid, traceparent, told
  FROM step WHERE key = ANY(%(keys)s::text[]) ORDER BY key FOR UPDATE

-- name: save_step
-- Store the intent of an operation, and schedule the call to the provider and the publication.
UPDATE step
   SET wish = %(wish)s, amount = %(amount)s, currency = %(currency)s, token = %(token)s,
       requestid = coalesce(requestid, %(requestid)s), traceparent = coalesce(traceparent, %(traceparent)s),
       ask_at = CASE WHEN %(ask)s THEN now() ELSE ask_at END,
       tell_at = CASE WHEN %(tell)s THEN now() ELSE tell_at END
 WHERE key = %(key)s

-- ---- the availability of the provider

-- name: provider
-- The stored availability of the provider.
SELECT available, since, version FROM provider WHERE provider = %(provider)s

-- name: save_provider
-- Store the availability of the provider. The version increases only with a change.
INSERT INTO provider AS p (provider, available) VALUES (%(provider)s, %(available)s)
    ON CONFLICT (provider) DO UPDATE
   SET available = excluded.available, version = p.version + 1, since = now()
 WHERE p.available <> excluded.available

-- ---- audit: each query returns one row per violation. Queries with a parameter double their percent signs.

-- name: captured_twice
-- At most one payment of an order may be captured.
SELECT format('order %%s: %%s payments were captured', order_id, count(*))
  FROM step WHERE state = 'captured' GROUP BY order_id HAVING count(*) > 1

-- name: refunded_too_much
-- The refunds of a payment must not exceed its capture.
SELECT format('payment %%s: captured %%s, refunded %%s', payment_id,
              coalesce(sum(settled_amount) FILTER (WHERE state = 'captured'), 0),
              sum(settled_amount) FILTER (WHERE state = 'refunded'))
  FROM step GROUP BY payment_id
HAVING sum(settled_amount) FILTER (WHERE state = 'refunded')
     > coalesce(sum(settled_amount) FILTER (WHERE state = 'captured'), 0)

-- name: not_published
-- Each outcome must be published soon.
SELECT format('%%s %%s is %%s since %%s, but no event was published', wish, key, state, settled_at)
  FROM step
 WHERE state <> 'open' AND settled_at < now() - %(grace)s::interval
   AND told IS DISTINCT FROM CASE WHEN wish = 'void' AND state = 'declined' THEN 'voided' ELSE state END

-- name: not_scheduled
-- Every open operation must be scheduled, unless it is only a query.
SELECT format('%%s %%s is open, but no call to the provider is scheduled', wish, key)
  FROM step WHERE state = 'open' AND ask_at IS NULL AND wish <> 'query'

-- name: lease_out_of_range
-- A lease must not have expired long ago, nor end far in the future.
SELECT format('%%s %%s is leased until %%s', wish, key, greatest(ask_lease, tell_lease))
  FROM step WHERE greatest(ask_lease, tell_lease) NOT BETWEEN now() - %(grace)s::interval - interval '1 minute'
                                                      AND now() + interval '1 hour'

-- name: operations
-- Every operation, for a comparison with the provider's history and the other services.
SELECT order_id, key, user_id, wish, state, settled_amount, settled_currency,
       extract(epoch FROM coalesce(settled_at, wanted_at))::float8
  FROM step

-- name: figures
-- The numbers of operations and sums of money. Amounts are minor units.
SELECT count(*) AS steps,
       count(*) FILTER (WHERE state = 'open') AS open,
       count(*) FILTER (WHERE state = 'open' AND doubted_at IS NOT NULL) AS doubted,
       count(*) FILTER (WHERE state = 'captured') AS captures,
       count(*) FILTER (WHERE state = 'declined') AS declined,
       count(*) FILTER (WHERE state = 'voided') AS voided,
       count(*) FILTER (WHERE state = 'captured' AND wish = 'void') AS captured_too_late,
       count(*) FILTER (WHERE state = 'refunded') AS refunds,
       count(*) FILTER (WHERE state = 'open' AND wish = 'refund') AS refunds_owed,
       coalesce(sum(settled_amount) FILTER (WHERE state = 'captured'), 0)::bigint AS captured,
       coalesce(sum(settled_amount) FILTER (WHERE state = 'refunded'), 0)::bigint AS refunded
  FROM step

-- name: digest
-- The rows to hash, without times.
SELECT concat_ws(' ', key, order_id, user_id, payment_id, wish, state, amount, currency, settled_amount, settled_currency)
  FROM step ORDER BY key COLLATE "C"

-- Every statement of payment, by name; those of the pumps are in infrastructure/pump.py.

-- ---- requests become rows

-- name: insert_missing
-- In the order of keys everywhere, so that two batches never wait for each other. A row begins as a question, and is
-- made what is wanted in the same transaction.
INSERT INTO step (key, order_id, user_id, payment_id, wish)
SELECT k, o, u, p, CASE WHEN k = p THEN 'query' ELSE 'refund' END
  FROM unnest(%(keys)s::text[], %(orders)s::text[], %(users)s::text[], %(payments)s::text[]) AS w(k, o, u, p)
 ORDER BY k
    ON CONFLICT DO NOTHING

-- name: lock_steps
SELECT key, order_id, user_id, payment_id, wish, amount, currency, token, state, settled_amount, settled_currency,
       reason, doubted_at, settled_at, wanted_at, requestid, traceparent, told
  FROM step WHERE key = ANY(%(keys)s::text[]) ORDER BY key FOR UPDATE

-- name: save_step
UPDATE step
   SET wish = %(wish)s, amount = %(amount)s, currency = %(currency)s, token = %(token)s,
       requestid = coalesce(requestid, %(requestid)s), traceparent = coalesce(traceparent, %(traceparent)s),
       ask_at = CASE WHEN %(ask)s THEN now() ELSE ask_at END,
       tell_at = CASE WHEN %(tell)s THEN now() ELSE tell_at END
 WHERE key = %(key)s

-- ---- whether the provider can be reached

-- name: provider
SELECT available, since, version FROM provider WHERE provider = %(provider)s

-- name: save_provider
INSERT INTO provider AS p (provider, available) VALUES (%(provider)s, %(available)s)
    ON CONFLICT (provider) DO UPDATE
   SET available = excluded.available, version = p.version + 1, since = now()
 WHERE p.available <> excluded.available

-- ---- the audit: each of these gives one row per violation. They have a parameter, hence the
-- doubled signs.

-- name: captured_twice
SELECT format('order %%s: %%s payments were captured', order_id, count(*))
  FROM step WHERE state = 'captured' GROUP BY order_id HAVING count(*) > 1

-- name: refunded_too_much
SELECT format('payment %%s: captured %%s, given back %%s', payment_id,
              coalesce(sum(settled_amount) FILTER (WHERE state = 'captured'), 0),
              sum(settled_amount) FILTER (WHERE state = 'refunded'))
  FROM step GROUP BY payment_id
HAVING sum(settled_amount) FILTER (WHERE state = 'refunded')
     > coalesce(sum(settled_amount) FILTER (WHERE state = 'captured'), 0)

-- name: not_told
SELECT format('%%s %%s is %%s since %%s, and nobody was told', wish, key, state, settled_at)
  FROM step
 WHERE state <> 'open' AND settled_at < now() - %(grace)s::interval
   AND told IS DISTINCT FROM CASE WHEN wish = 'void' AND state = 'declined' THEN 'voided' ELSE state END

-- name: left_alone
-- What is open is due some time, unless it was only asked after.
SELECT format('%%s %%s is open and nobody will ask', wish, key)
  FROM step WHERE state = 'open' AND ask_at IS NULL AND wish <> 'query'

-- name: leased_for_ever
SELECT format('%%s %%s is leased until %%s', wish, key, greatest(ask_lease, tell_lease))
  FROM step WHERE greatest(ask_lease, tell_lease) NOT BETWEEN now() - %(grace)s::interval - interval '1 minute'
                                                      AND now() + interval '1 hour'

-- name: settled
SELECT key, payment_id, state, settled_amount, settled_currency FROM step WHERE state <> 'open'

-- name: figures
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
SELECT concat_ws(' ', key, order_id, user_id, payment_id, wish, state, amount, currency, settled_amount, settled_currency)
  FROM step ORDER BY key COLLATE "C"

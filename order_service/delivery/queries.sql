-- The SQL statements of delivery, by name. Those of the job queues are in infrastructure/storage/job_queue.py.

-- name: insert_missing
-- Insert by ascending key, as everywhere, so that two batches never deadlock.
INSERT INTO parcel (shipment_id, order_id, user_id, wish)
SELECT s, o, u, 'book' FROM unnest(%(shipments)s::text[], %(orders)s::text[], %(users)s::text[]) AS w(s, o, u)
 ORDER BY s
    ON CONFLICT DO NOTHING

-- name: lock_parcels
-- Lock some parcels by ascending key.
SELECT shipment_id, order_id, user_id, wish, address, state, carrier, tracking, booked_at, moves
  FROM parcel WHERE shipment_id = ANY(%(shipments)s::text[]) ORDER BY shipment_id FOR UPDATE

-- name: save_parcel
-- A repeated request resets `told`: the order service may have missed any move.
UPDATE parcel
   SET wish = %(wish)s, address = %(address)s,
       requestid = coalesce(requestid, %(requestid)s), traceparent = coalesce(traceparent, %(traceparent)s),
       move_at = CASE WHEN %(move)s THEN now() ELSE move_at END,
       told = CASE WHEN %(tell)s THEN 0 ELSE told END,
       tell_at = CASE WHEN %(tell)s THEN now() ELSE tell_at END
 WHERE shipment_id = %(shipment_id)s

-- ---- audit: each query returns one row per violation. Queries with a parameter double their percent signs.

-- name: not_published
-- Each move must be published soon.
SELECT format('parcel %%s of order %%s: %%s of %%s moves were published',
              shipment_id, order_id, told, jsonb_array_length(moves))
  FROM parcel WHERE told < jsonb_array_length(moves) AND moved_at < now() - %(grace)s::interval

-- name: not_scheduled
-- Each open parcel must have a scheduled call to the carrier.
SELECT format('parcel %%s is %%s, but no call to the carrier is scheduled', shipment_id, state)
  FROM parcel WHERE state IN ('wanted', 'booked', 'shipped') AND move_at IS NULL

-- name: overdue
-- Each scheduled call must be made in time.
SELECT format('parcel %%s is %%s, and its call to the carrier is overdue since %%s', shipment_id, state, move_at)
  FROM parcel WHERE move_at < now() - %(grace)s::interval

-- name: lease_out_of_range
-- A lease must not have expired long ago, nor end far in the future.
SELECT format('parcel %%s is leased until %%s', shipment_id, greatest(move_lease, tell_lease))
  FROM parcel WHERE greatest(move_lease, tell_lease) NOT BETWEEN now() - %(grace)s::interval - interval '1 minute'
                                                          AND now() + interval '1 hour'

-- name: shipped_twice
-- At most one parcel of an order may be shipped.
SELECT format('order %%s: %%s parcels were shipped', order_id, count(*))
  FROM parcel WHERE state IN ('shipped', 'delivered', 'failed')
 GROUP BY order_id HAVING count(*) > 1

-- name: parcels
-- Every parcel, for a comparison with the other services.
SELECT order_id, shipment_id, user_id, state, extract(epoch FROM moved_at)::float8 FROM parcel

-- name: figures
-- The numbers of parcels by state.
SELECT count(*) AS parcels,
       count(*) FILTER (WHERE state IN ('wanted', 'booked')) AS waiting,
       count(*) FILTER (WHERE state = 'shipped') AS shipped,
       count(*) FILTER (WHERE state = 'delivered') AS delivered,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       count(*) FILTER (WHERE state = 'called-off') AS called_off,
       count(*) FILTER (WHERE wish = 'call-off' AND state NOT IN ('called-off', 'wanted', 'booked')) AS called_off_too_late
  FROM parcel

-- name: digest
-- The rows to hash, without times.
SELECT concat_ws(' ', shipment_id, order_id, user_id, wish, state, carrier, tracking)
  FROM parcel ORDER BY shipment_id COLLATE "C"

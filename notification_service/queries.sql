-- Every statement of the notification service, by name.

-- ---- requests -------------------------------------------------------------------------------------------------------

-- name: preferences
-- Read the preferences of some users.
SELECT user_id, email, sms, push, accepted_at FROM preference WHERE user_id = ANY(%(users)s)

-- name: known_contacts
-- Read which of some users have a proven contact, and whether the latest one has a phone number.
SELECT DISTINCT ON (user_id) user_id, phone IS NOT NULL
  FROM contact JOIN paid_order USING (order_id, user_id)
 WHERE user_id = ANY(%(users)s) ORDER BY user_id, contact.noted_at DESC

-- name: upsert_notice
-- Store a notice, once per cause and channel: a repeat by another service or by a replay changes nothing. The exception
-- is the redrive of the dead letter of the stored request: a failed notice is then tried again. The redriven request
-- replaces the stored one, and is dead-lettered if the notice fails again. So each dead letter takes effect once,
-- however often it is redriven or replayed.
INSERT INTO notice AS n
  (notice_id, user_id, cause, channel, template, params, order_id, too_late_at, accepted_at, status, reason,
   traceparent, request, partition, record_offset, by_service, proven_only, recipient, due_at)
VALUES
  (%(notice_id)s, %(user_id)s, %(cause)s, %(channel)s, %(template)s, %(params)s, %(order_id)s, %(until)s,
   %(accepted_at)s, %(status)s, %(reason)s, %(traceparent)s, %(request)s, %(partition)s, %(offset)s,
   %(by_service)s, %(proven_only)s, %(recipient)s,
   CASE WHEN %(status)s = 'queued' THEN now() END)
ON CONFLICT (user_id, cause, channel) DO UPDATE
   SET request = excluded.request, partition = excluded.partition, record_offset = excluded.record_offset,
       status = CASE WHEN n.status = 'queued' THEN n.status
                     WHEN excluded.status = 'muted' THEN 'muted' ELSE 'queued' END,
       reason = CASE WHEN n.status = 'failed' THEN '' ELSE n.reason END,
       settled_at = NULL,
       due_attempts = CASE WHEN n.status = 'failed' THEN 0 ELSE n.due_attempts END,
       due_at = CASE WHEN n.status = 'queued' THEN n.due_at WHEN excluded.status = 'muted' THEN NULL ELSE now() END
 WHERE n.status IN ('queued', 'failed') AND n.partition || '/' || n.record_offset = %(redrives)s

-- name: upsert_preference
-- Store a user's preferences, unless later ones are stored.
INSERT INTO preference AS p (user_id, email, sms, push, accepted_at)
VALUES (%(user_id)s, %(email)s, %(sms)s, %(push)s, %(since)s)
ON CONFLICT (user_id) DO UPDATE
   SET email = excluded.email, sms = excluded.sms, push = excluded.push, accepted_at = excluded.accepted_at
 WHERE p.accepted_at < excluded.accepted_at

-- name: delete_contacts
-- Delete a user's contacts for an erasure.
DELETE FROM contact WHERE user_id = %(user_id)s AND noted_at <= %(at)s

-- name: delete_paid_orders
-- Delete the record of which of a user's orders were paid for an erasure.
DELETE FROM paid_order WHERE user_id = %(user_id)s

-- name: delete_claims
-- Delete the claims of a user's notices for an erasure.
DELETE FROM recipient_claim USING notice
 WHERE recipient_claim.notice_id = notice.notice_id AND notice.user_id = %(user_id)s

-- name: delete_order_summaries
-- Delete the summaries of a user's orders for an erasure.
DELETE FROM bought WHERE user_id = %(user_id)s

-- name: erase_notices
-- Erase the content of a user's notices. Their keys stay, so that old requests do not create them again.
UPDATE notice
   SET params = '{}', request = NULL, recipient = NULL, due_at = NULL, told_at = NULL, order_id = NULL,
       status = CASE WHEN status IN ('queued', 'failed') THEN 'skipped' ELSE status END, reason = 'forgotten'
 WHERE user_id = %(user_id)s AND accepted_at <= %(at)s

-- name: delete_sms
-- Delete a user's SMS for an erasure.
DELETE FROM sms USING notice
 WHERE sms.notice_id = notice.notice_id AND notice.user_id = %(user_id)s AND notice.accepted_at <= %(at)s

-- name: insert_erasure
-- Record the time of an erasure, so that older records do not bring the user's contacts back.
INSERT INTO forgotten AS f (user_id, at) VALUES (%(user_id)s, %(at)s)
ON CONFLICT (user_id) DO UPDATE SET at = greatest(f.at, excluded.at)

-- name: insert_contact
-- Store the contact of an order, unless its user was erased since.
INSERT INTO contact (order_id, user_id, email, phone, noted_at)
SELECT %(order_id)s, %(user_id)s, %(email)s, %(phone)s, %(noted_at)s
 WHERE NOT EXISTS (SELECT FROM forgotten WHERE user_id = %(user_id)s AND at >= %(noted_at)s)
ON CONFLICT (order_id) DO NOTHING

-- name: insert_order_summary
-- Store the summary of an order, unless its user was erased since.
INSERT INTO bought (order_id, user_id, lines, total)
SELECT %(order_id)s, %(user_id)s, %(lines)s, %(total)s
 WHERE NOT EXISTS (SELECT FROM forgotten WHERE user_id = %(user_id)s AND at >= %(told_at)s)
ON CONFLICT (order_id) DO NOTHING

-- name: insert_paid_orders
-- Record that the payment of some orders was captured.
INSERT INTO paid_order (order_id, user_id) SELECT * FROM unnest(%(orders)s::text[], %(users)s::text[])
ON CONFLICT (order_id) DO NOTHING

-- name: upsert_product_names
-- Store the names of products, unless later versions are stored.
INSERT INTO product_name AS p (code, name, version)
SELECT * FROM unnest(%(codes)s::text[], %(names)s::text[], %(versions)s::bigint[])
ON CONFLICT (code) DO UPDATE SET name = excluded.name, version = excluded.version WHERE p.version < excluded.version

-- name: product_names
-- Read the names of some products.
SELECT code, name FROM product_name WHERE code = ANY(%(codes)s)

-- name: order_summaries
-- Read the summaries of some orders.
SELECT order_id, lines, total FROM bought WHERE order_id = ANY(%(orders)s)

-- ---- carts ----------------------------------------------------------------------------------------------------------

-- name: carts
-- Lock and read the tracked carts of some users.
SELECT user_id, version, expires_at, products FROM cart WHERE user_id = ANY(%(users)s) ORDER BY user_id FOR UPDATE

-- name: upsert_carts
-- Store tracked carts that are newer. A job queue worker that processes the row meanwhile keeps the new `due_at`.
INSERT INTO cart AS c (user_id, version, expires_at, products, due_at)
SELECT * FROM unnest(%(users)s::text[], %(versions)s::bigint[], %(ends)s::timestamptz[], %(products)s::jsonb[],
                     %(due)s::timestamptz[])
ON CONFLICT (user_id) DO UPDATE
   SET version = excluded.version, expires_at = excluded.expires_at, products = excluded.products,
       due_at = excluded.due_at, seen_at = now()
 WHERE c.version < excluded.version

-- ---- sending --------------------------------------------------------------------------------------------------------

-- name: contact
-- Read the contact of an order, its user, and whether that user has paid an order with the same address or number.
SELECT c.user_id, c.email, c.phone,
       EXISTS (SELECT FROM contact AS o JOIN paid_order USING (order_id, user_id)
                WHERE o.user_id = c.user_id AND o.email = c.email),
       EXISTS (SELECT FROM contact AS o JOIN paid_order USING (order_id, user_id)
                WHERE o.user_id = c.user_id AND o.phone = c.phone)
  FROM contact AS c WHERE c.order_id = %(order_id)s

-- name: latest_contact
-- Read the latest proven contact of a user.
SELECT user_id, email, phone, true, true
  FROM contact JOIN paid_order USING (order_id, user_id)
 WHERE user_id = %(user_id)s ORDER BY contact.noted_at DESC LIMIT 1

-- name: lock_claims
-- Let the claims of a channel follow each other: the lock is held until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended(concat_ws(' ', current_schema(), 'claims', %(channel)s::text), 0))

-- name: count_claims
-- Count the notices that a recipient got in the last hour and day, and up to `most` notices that all got in the hour.
SELECT EXISTS (SELECT FROM recipient_claim WHERE notice_id = %(notice_id)s),
       count(*) FILTER (WHERE claimed_at > now() - interval '1 hour'),
       count(*),
       (SELECT count(*) FROM (
         SELECT FROM recipient_claim
          WHERE channel = %(channel)s AND claimed_at > now() - interval '1 hour' LIMIT %(most)s) AS latest)
  FROM recipient_claim
 WHERE channel = %(channel)s AND recipient = %(recipient)s AND by_service = %(by_service)s
   AND claimed_at > now() - interval '1 day'

-- name: insert_claim
INSERT INTO recipient_claim (notice_id, channel, recipient, by_service)
VALUES (%(notice_id)s, %(channel)s, %(recipient)s, %(by_service)s)

-- name: take_sms
-- Store an SMS in the simulated provider, once per notice.
INSERT INTO sms (notice_id, number, text) VALUES (%(notice_id)s, %(number)s, %(text)s) ON CONFLICT DO NOTHING

-- ---- background: retention ------------------------------------------------------------------------------------------

-- name: delete_old_contacts
-- Delete some contacts that are older than the retention period.
DELETE FROM contact WHERE order_id IN (
  SELECT order_id FROM contact WHERE noted_at < now() - make_interval(days => %(contact_days)s) ORDER BY noted_at LIMIT 1000)

-- name: delete_old_paid_orders
-- Delete the record of some paid orders whose contacts are deleted as well.
DELETE FROM paid_order WHERE order_id IN (
  SELECT order_id FROM paid_order WHERE noted_at < now() - make_interval(days => %(contact_days)s)
   ORDER BY noted_at LIMIT 1000)

-- name: delete_old_notices
-- Delete some notices that are older than the retention period, with nothing left to do. A record that is delivered
-- again after that is too old to be worth a notice.
DELETE FROM notice WHERE notice_id IN (
  SELECT notice_id FROM notice
   WHERE accepted_at < now() - make_interval(days => %(notice_days)s) AND due_at IS NULL AND told_at IS NULL
   ORDER BY accepted_at LIMIT 1000)

-- name: delete_old_sms
-- Delete some SMS of the simulated provider that are older than the retention period.
DELETE FROM sms WHERE notice_id IN (
  SELECT notice_id FROM sms WHERE taken_at < now() - make_interval(days => %(notice_days)s) ORDER BY taken_at LIMIT 1000)

-- name: delete_old_claims
-- Delete some claims that no limit counts any more.
DELETE FROM recipient_claim WHERE notice_id IN (
  SELECT notice_id FROM recipient_claim WHERE claimed_at < now() - interval '1 day' ORDER BY claimed_at LIMIT 1000)

-- name: delete_old_order_summaries
-- Delete some order summaries that are older than 30 days.
DELETE FROM bought WHERE order_id IN (
  SELECT order_id FROM bought WHERE noted_at < now() - interval '30 days' ORDER BY noted_at LIMIT 1000)

-- name: delete_old_carts
-- Delete some carts without a recent response; topics keep responses for seven days.
DELETE FROM cart WHERE user_id IN (
  SELECT user_id FROM cart WHERE seen_at < now() - interval '9 days' AND due_at IS NULL LIMIT 1000)

-- ---- the audit ------------------------------------------------------------------------------------------------------

-- name: overdue_notices
-- Check that no notice waits to be sent for longer than the grace period.
SELECT format('notice %%s (%%s) is due since %%s and was not processed', notice_id, channel, due_at)
  FROM notice
 WHERE due_at < now() - make_interval(secs => %(grace)s)
   AND (due_lease IS NULL OR due_lease < now() - make_interval(secs => %(grace)s))
 ORDER BY due_at

-- name: unpublished_outcomes
-- Check that no outcome waits to be published for longer than the grace period.
SELECT format('notice %%s was %%s at %%s, and its outcome was not published', notice_id, status, settled_at)
  FROM notice WHERE told_at < now() - make_interval(secs => %(grace)s) ORDER BY told_at

-- name: inconsistent_notices
-- Check that exactly the queued notices are due.
SELECT format('notice %%s is %%s, which does not agree with its due time', notice_id, status)
  FROM notice WHERE (status = 'queued') <> (due_at IS NOT NULL) AND due_lease IS NULL ORDER BY notice_id

-- name: overdue_warnings
-- Check that no expiry warning waits for longer than the grace period.
SELECT format('the expiry warning for the cart of %%s was due at %%s', user_id, due_at)
  FROM cart WHERE due_at < now() - make_interval(secs => %(grace)s) ORDER BY due_at

-- name: digest
-- The lines of the digest: which notices exist.
SELECT concat_ws(' ', user_id, cause, channel, template) FROM notice ORDER BY user_id, cause, channel

-- name: figures
-- Count notices by status.
SELECT count(*) FILTER (WHERE status = 'queued') AS notices_queued,
       count(*) FILTER (WHERE status = 'sent') AS notices_sent,
       count(*) FILTER (WHERE status = 'failed') AS notices_failed,
       count(*) FILTER (WHERE status IN ('muted', 'skipped')) AS notices_not_told
  FROM notice

-- name: stored_causes
-- Read the causes of all notices, to compare them with the topics.
SELECT user_id, cause FROM notice GROUP BY user_id, cause

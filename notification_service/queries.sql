-- Every statement of the notification service, by name.

-- ---- storing --------------------------------------------------------------------------------------------------------

-- name: preferences
SELECT user_id, email, sms, push, accepted_at FROM preference WHERE user_id = ANY(%(users)s)

-- name: known_contacts
-- Who was reached before, and whether by phone too.
SELECT DISTINCT ON (user_id) user_id, phone IS NOT NULL
  FROM contact WHERE user_id = ANY(%(users)s) ORDER BY user_id, noted_at DESC

-- name: keep_notice
-- Once for each cause and channel: who asks for it again changes nothing, be it another service or a replay. Only the
-- letter of the request that is kept has what failed tried again. It is kept instead then, and is the one to put aside
-- should that fail too: so each letter counts once, however often it is redriven, or replayed from where it lies.
INSERT INTO notice AS n
  (notice_id, user_id, cause, channel, template, params, order_id, too_late_at, accepted_at, status, reason,
   traceparent, request, partition, record_offset, due_at)
VALUES
  (%(notice_id)s, %(user_id)s, %(cause)s, %(channel)s, %(template)s, %(params)s, %(order_id)s, %(until)s,
   %(accepted_at)s, %(status)s, %(reason)s, %(traceparent)s, %(request)s, %(partition)s, %(offset)s,
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

-- name: keep_preference
INSERT INTO preference AS p (user_id, email, sms, push, accepted_at)
VALUES (%(user_id)s, %(email)s, %(sms)s, %(push)s, %(since)s)
ON CONFLICT (user_id) DO UPDATE
   SET email = excluded.email, sms = excluded.sms, push = excluded.push, accepted_at = excluded.accepted_at
 WHERE p.accepted_at < excluded.accepted_at

-- name: forget_contacts
DELETE FROM contact WHERE user_id = %(user_id)s AND noted_at <= %(at)s

-- name: forget_bought
DELETE FROM bought WHERE user_id = %(user_id)s

-- name: forget_notices
-- Their keys stay, so that nothing old is told anew; what they said goes.
UPDATE notice
   SET params = '{}', request = NULL, due_at = NULL, told_at = NULL, order_id = NULL,
       status = CASE WHEN status IN ('queued', 'failed') THEN 'skipped' ELSE status END, reason = 'forgotten'
 WHERE user_id = %(user_id)s AND accepted_at <= %(at)s

-- name: forget_sms
DELETE FROM sms USING notice
 WHERE sms.notice_id = notice.notice_id AND notice.user_id = %(user_id)s AND notice.accepted_at <= %(at)s

-- name: remember_forgetting
INSERT INTO forgotten AS f (user_id, at) VALUES (%(user_id)s, %(at)s)
ON CONFLICT (user_id) DO UPDATE SET at = greatest(f.at, excluded.at)

-- name: keep_contact
INSERT INTO contact (order_id, user_id, email, phone, noted_at)
SELECT %(order_id)s, %(user_id)s, %(email)s, %(phone)s, %(noted_at)s
 WHERE NOT EXISTS (SELECT FROM forgotten WHERE user_id = %(user_id)s AND at >= %(noted_at)s)
ON CONFLICT (order_id) DO NOTHING

-- name: keep_bought
INSERT INTO bought (order_id, user_id, lines, total)
SELECT %(order_id)s, %(user_id)s, %(lines)s, %(total)s
 WHERE NOT EXISTS (SELECT FROM forgotten WHERE user_id = %(user_id)s AND at >= %(told_at)s)
ON CONFLICT (order_id) DO NOTHING

-- name: bought
SELECT order_id, lines, total FROM bought WHERE order_id = ANY(%(orders)s)

-- ---- carts ----------------------------------------------------------------------------------------------------------

-- name: carts
SELECT user_id, version, expires_at, products FROM cart WHERE user_id = ANY(%(users)s) ORDER BY user_id FOR UPDATE

-- name: keep_carts
-- A newer end replaces the older one; a pump that is at it meanwhile leaves what was set here.
INSERT INTO cart AS c (user_id, version, expires_at, products, due_at)
SELECT * FROM unnest(%(users)s::text[], %(versions)s::bigint[], %(ends)s::timestamptz[], %(products)s::jsonb[],
                     %(due)s::timestamptz[])
ON CONFLICT (user_id) DO UPDATE
   SET version = excluded.version, expires_at = excluded.expires_at, products = excluded.products,
       due_at = excluded.due_at, seen_at = now()
 WHERE c.version < excluded.version

-- ---- telling --------------------------------------------------------------------------------------------------------

-- name: contact
-- That of the order; else the last one known.
SELECT email, phone FROM contact
 WHERE CASE WHEN %(order_id)s::text IS NULL THEN user_id = %(user_id)s ELSE order_id = %(order_id)s END
 ORDER BY noted_at DESC LIMIT 1

-- name: take_sms
INSERT INTO sms (notice_id, number, text) VALUES (%(notice_id)s, %(number)s, %(text)s) ON CONFLICT DO NOTHING

-- ---- beside the agents ----------------------------------------------------------------------------------------------

-- name: trim_contacts
DELETE FROM contact WHERE order_id IN (
  SELECT order_id FROM contact WHERE noted_at < now() - make_interval(days => %(days)s) ORDER BY noted_at LIMIT 1000)

-- name: trim_bought
DELETE FROM bought WHERE order_id IN (
  SELECT order_id FROM bought WHERE noted_at < now() - interval '30 days' ORDER BY noted_at LIMIT 1000)

-- name: trim_carts
-- Topics keep what they told of it for seven days.
DELETE FROM cart WHERE user_id IN (
  SELECT user_id FROM cart WHERE seen_at < now() - interval '9 days' AND due_at IS NULL LIMIT 1000)

-- ---- the audit ------------------------------------------------------------------------------------------------------

-- name: overdue
SELECT format('notice %%s (%%s) is due since %%s, and nobody works it off', notice_id, channel, due_at)
  FROM notice
 WHERE due_at < now() - make_interval(secs => %(grace)s)
   AND (due_lease IS NULL OR due_lease < now() - make_interval(secs => %(grace)s))
 ORDER BY due_at

-- name: untold
SELECT format('notice %%s was %%s at %%s, and nobody was told', notice_id, status, settled_at)
  FROM notice WHERE told_at < now() - make_interval(secs => %(grace)s) ORDER BY told_at

-- name: at_rest
SELECT format('notice %%s is %%s, and there is something to do for it still', notice_id, status)
  FROM notice WHERE (status = 'queued') <> (due_at IS NOT NULL) AND due_lease IS NULL ORDER BY notice_id

-- name: unwarned
SELECT format('the cart of %%s was to be warned of at %%s', user_id, due_at)
  FROM cart WHERE due_at < now() - make_interval(secs => %(grace)s) ORDER BY due_at

-- name: digest
SELECT concat_ws(' ', user_id, cause, channel, template) FROM notice ORDER BY user_id, cause, channel

-- name: figures
SELECT count(*) FILTER (WHERE status = 'queued') AS notices_queued,
       count(*) FILTER (WHERE status = 'sent') AS notices_sent,
       count(*) FILTER (WHERE status = 'failed') AS notices_failed,
       count(*) FILTER (WHERE status IN ('muted', 'skipped')) AS notices_not_told
  FROM notice

-- name: stored_causes
SELECT user_id, cause FROM notice GROUP BY user_id, cause

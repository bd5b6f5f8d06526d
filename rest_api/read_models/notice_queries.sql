-- name: put_notice
-- Insert a notice, or update its status. A failed notice may be sent later; a sent one never fails.
INSERT INTO notice (notice_id, user_id, channel, template, cause, title, body, status, reason, accepted_at, settled_at)
VALUES (%(notice_id)s, %(user_id)s, %(channel)s, %(template)s, %(cause)s, %(title)s, %(body)s, %(status)s, %(reason)s,
        %(accepted_at)s, %(settled_at)s)
ON CONFLICT (notice_id) DO UPDATE
   SET status = excluded.status, reason = excluded.reason, settled_at = excluded.settled_at
 WHERE notice.settled_at < excluded.settled_at;

-- name: put_preference
INSERT INTO notice_preference AS p (user_id, email, sms, push, since)
VALUES (%(user_id)s, %(email)s, %(sms)s, %(push)s, %(since)s)
ON CONFLICT (user_id) DO UPDATE
   SET email = excluded.email, sms = excluded.sms, push = excluded.push, since = excluded.since
 WHERE p.since < excluded.since;

-- name: forget
DELETE FROM notice WHERE user_id = %(user_id)s AND accepted_at <= %(at)s;

-- name: preference
SELECT email, sms, push FROM notice_preference WHERE user_id = %(user_id)s;

-- name: notices
-- One page of a user's notices, newest first.
SELECT notice_id, channel, template, cause, title, body, status, accepted_at, settled_at, reason
  FROM notice
 WHERE user_id = %(user_id)s
   AND (%(at)s::timestamptz IS NULL OR (accepted_at, notice_id) < (%(at)s::timestamptz, %(notice_id)s::text))
 ORDER BY accepted_at DESC, notice_id DESC
 LIMIT %(limit)s;

-- name: delete_old_notices
-- Delete some notices that are older than the retention period.
DELETE FROM notice WHERE notice_id IN (
  SELECT notice_id FROM notice WHERE settled_at < now() - make_interval(days => %(days)s)
   ORDER BY settled_at LIMIT %(limit)s)
RETURNING notice_id;

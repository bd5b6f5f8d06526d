-- Idempotency keys. Statements of several keys lock them in the order of their parameters, which callers sort.

-- name: claim
-- Claim some keys. A row without a fingerprint is a key that was free and is claimed now. Other rows are requests that
-- hold a key already, with the age of the claim in seconds, and the response. A key that another session has claimed
-- since the statement began has no row.
WITH wanted AS MATERIALIZED (
    SELECT * FROM unnest(%(users)s::text[], %(ids)s::text[], %(fingerprints)s::text[])
                  WITH ORDINALITY AS w(user_id, id, fingerprint, place)),
claimed AS (
    INSERT INTO claim (user_id, id, fingerprint) SELECT user_id, id, fingerprint FROM wanted ORDER BY place
    ON CONFLICT (user_id, id) DO NOTHING RETURNING user_id, id)
SELECT user_id, id, NULL AS fingerprint, 0::float8, NULL::int, NULL::bytea FROM claimed
 UNION ALL
SELECT w.user_id, w.id, known.* FROM wanted AS w CROSS JOIN LATERAL (
    SELECT fingerprint, extract(epoch FROM now() - claimed_at)::float8, status, answer
      FROM claim WHERE user_id = w.user_id AND id = w.id OFFSET 0) AS known;

-- name: take_over
-- Take over a claim that has been unanswered for too long. Of concurrent attempts exactly one succeeds.
UPDATE claim SET claimed_at = now()
 WHERE user_id = %(user_id)s AND id = %(id)s AND status IS NULL
   AND claimed_at <= now() - make_interval(secs => %(seconds)s)
RETURNING true;

-- name: complete
-- Store some responses. One without a status was not sent: its claim is backdated, so that the next request may take it
-- over at once. A response that is final, which 202 is not, is never replaced.
UPDATE claim SET status = d.status, answer = d.answer,
       claimed_at = CASE WHEN d.status IS NULL THEN now() - interval '1 day' ELSE claim.claimed_at END
  FROM unnest(%(users)s::text[], %(ids)s::text[], %(statuses)s::int[], %(answers)s::bytea[])
       AS d(user_id, id, status, answer)
 WHERE claim.user_id = d.user_id AND claim.id = d.id
   AND (claim.status IS NULL OR claim.status = 202 AND d.status IS NOT NULL);

-- Every statement of the account service, by name.

-- ---- accounts -------------------------------------------------------------------------------------------------------

-- name: account
-- Read an account.
SELECT user_id, email, name, profile, roles, created_at, version, confirmed, disabled, password_hash, tokens_from
  FROM account WHERE user_id = %(user_id)s

-- name: lock_account
-- Lock and read an account, before any of its sessions or tokens.
SELECT user_id, email, name, profile, roles, created_at, version, confirmed, disabled, password_hash, tokens_from
  FROM account WHERE user_id = %(user_id)s FOR UPDATE

-- name: account_by_email
-- Read the account of an address.
SELECT user_id, email, name, profile, roles, created_at, version, confirmed, disabled, password_hash, tokens_from
  FROM account WHERE email_key = %(email_key)s

-- name: accounts_page
-- Read a page of accounts, oldest first: their ids are ordered by time.
SELECT user_id, email, name, profile, roles, created_at, version, confirmed, disabled, password_hash, tokens_from
  FROM account WHERE user_id > %(after)s ORDER BY user_id LIMIT %(limit)s

-- name: insert_account
-- Create an account, unless its address is taken.
INSERT INTO account (user_id, email, email_key, name, profile, password_hash, roles, version, confirmed, created_at)
VALUES (%(user_id)s, %(email)s, %(email_key)s, %(name)s, %(profile)s, %(password_hash)s, %(roles)s, %(version)s,
        %(confirmed)s, %(created_at)s)
ON CONFLICT (email_key) DO NOTHING

-- name: update_account
-- Store a changed account.
UPDATE account
   SET name = %(name)s, profile = %(profile)s, password_hash = %(password_hash)s, roles = %(roles)s,
       version = %(version)s, tokens_from = %(tokens_from)s, confirmed = %(confirmed)s, disabled = %(disabled)s
 WHERE user_id = %(user_id)s

-- name: delete_account
-- Delete an account with its sessions and tokens.
DELETE FROM account WHERE user_id = %(user_id)s

-- ---- sessions -------------------------------------------------------------------------------------------------------

-- name: session
-- Read a session.
SELECT session_id, user_id, created_at, seen_at, generation, ended_at FROM session WHERE session_id = %(session_id)s

-- name: sessions_of
-- Read the sessions of an account that were not ended, newest first.
SELECT session_id, user_id, created_at, seen_at, generation, ended_at
  FROM session WHERE user_id = %(user_id)s AND ended_at IS NULL ORDER BY session_id DESC

-- name: insert_session
-- Begin a session.
INSERT INTO session (session_id, user_id, created_at, seen_at) VALUES (%(session_id)s, %(user_id)s, %(now)s, %(now)s)

-- name: update_session
-- Store the next generation of a session.
UPDATE session SET generation = %(generation)s, seen_at = %(seen_at)s WHERE session_id = %(session_id)s

-- name: end_sessions
-- End some sessions of an account, and return those that had not ended.
UPDATE session SET ended_at = %(now)s
 WHERE user_id = %(user_id)s AND session_id = ANY(%(session_ids)s) AND ended_at IS NULL
RETURNING session_id

-- name: delete_old_sessions
-- Delete some sessions that ended or expired a day ago: no token of theirs is valid.
DELETE FROM session WHERE session_id IN (
  SELECT session_id FROM session WHERE ended_at < now() - interval '1 day' LIMIT %(limit)s)

-- name: delete_idle_sessions
-- Delete some sessions that nobody has refreshed for longer than they live.
DELETE FROM session WHERE session_id IN (
  SELECT session_id FROM session WHERE seen_at < now() - interval '31 days' ORDER BY seen_at LIMIT %(limit)s)

-- ---- one-time tokens ------------------------------------------------------------------------------------------------

-- name: insert_one_time_token
-- Store the digest of a token.
INSERT INTO one_time_token (digest, user_id, purpose, password_hash, created_at, expires_at)
VALUES (%(digest)s, %(user_id)s, %(purpose)s, %(password_hash)s, %(now)s, %(expires_at)s)

-- name: delete_surplus_tokens
-- Delete all but the newest tokens of an account and purpose.
DELETE FROM one_time_token WHERE digest IN (
  SELECT digest FROM one_time_token WHERE user_id = %(user_id)s AND purpose = %(purpose)s
   ORDER BY created_at DESC, digest OFFSET %(keep)s)

-- name: one_time_token
-- Read a token that has not expired.
SELECT user_id, password_hash FROM one_time_token
 WHERE digest = %(digest)s AND purpose = %(purpose)s AND expires_at > %(now)s

-- name: delete_tokens
-- Delete all tokens of an account and purpose: one of them was used, or they have become pointless.
DELETE FROM one_time_token WHERE user_id = %(user_id)s AND purpose = %(purpose)s

-- name: delete_expired_tokens
-- Delete some tokens that have expired.
DELETE FROM one_time_token WHERE digest IN (
  SELECT digest FROM one_time_token WHERE expires_at < now() ORDER BY expires_at LIMIT %(limit)s)

-- ---- keys -----------------------------------------------------------------------------------------------------------

-- name: lock_keys
-- Let one process at a time change the keys, until the end of the transaction.
SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || ' signing keys', 0))

-- name: signing_keys
-- Read the keys, the newest first.
SELECT kid, sealed, public_key, created_at, active_at FROM signing_key ORDER BY active_at DESC, kid

-- name: insert_key
-- Store a new key.
INSERT INTO signing_key (kid, sealed, public_key, created_at, active_at)
VALUES (%(kid)s, %(sealed)s, %(public_key)s, %(now)s, %(active_at)s)

-- name: delete_keys
-- Delete some keys, which also ends the access tokens that they signed.
DELETE FROM signing_key WHERE kid = ANY(%(kids)s)

-- name: reseal_key
-- Encrypt a key with another secret.
UPDATE signing_key SET sealed = %(sealed)s WHERE kid = %(kid)s

-- ---- outbox ---------------------------------------------------------------------------------------------------------

-- name: insert_outbox
-- Queue a record for publication.
INSERT INTO outbox (topic, subject, value) VALUES (%(topic)s, %(subject)s, %(value)s)

-- name: outbox
-- Read the records to publish, in the order of their transactions for each account.
SELECT seq, topic, subject, value FROM outbox ORDER BY seq LIMIT %(limit)s

-- name: delete_outbox
-- Delete records that Kafka has.
DELETE FROM outbox WHERE seq = ANY(%(seqs)s)

-- Users. `email` is the address as it was given, `email_key` the same without upper case: no two accounts share it.
-- `version` rises by one with each change. Access tokens from before version `tokens_from` are not valid any more.
CREATE TABLE account (
  user_id text PRIMARY KEY,
  email text NOT NULL,
  email_key text NOT NULL UNIQUE,
  name text NOT NULL,
  profile jsonb NOT NULL DEFAULT '{}',
  password_hash text NOT NULL,
  roles text[] NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  tokens_from bigint NOT NULL DEFAULT 1,
  confirmed boolean NOT NULL DEFAULT false,
  disabled boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL
);

-- Logins. The newest refresh token of a session has the number `generation`; a lower number is a reuse.
CREATE TABLE session (
  session_id text PRIMARY KEY,
  user_id text NOT NULL REFERENCES account ON DELETE CASCADE,
  created_at timestamptz NOT NULL,
  seen_at timestamptz NOT NULL,
  generation bigint NOT NULL DEFAULT 0,
  ended_at timestamptz
) WITH (fillfactor = 80);
CREATE INDEX session_of_user ON session (user_id, session_id);
CREATE INDEX session_by_age ON session (seen_at);
CREATE INDEX session_ended ON session (ended_at) WHERE ended_at IS NOT NULL;

-- Tokens in mails, by their digest. A registration waits with its password until its address is confirmed.
CREATE TABLE one_time_token (
  digest bytea PRIMARY KEY,
  user_id text NOT NULL REFERENCES account ON DELETE CASCADE,
  purpose text NOT NULL CHECK (purpose IN ('confirm', 'reset')),
  password_hash text,
  created_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL
);
CREATE INDEX one_time_token_of_user ON one_time_token (user_id, purpose, created_at);
CREATE INDEX one_time_token_by_age ON one_time_token (expires_at);

-- Keys that sign access tokens. The private key is encrypted with HOLDFAST_ACCOUNTS_SECRET; the newest key whose
-- `active_at` has passed signs.
CREATE TABLE signing_key (
  kid text PRIMARY KEY,
  sealed bytea NOT NULL,
  public_key bytea NOT NULL,
  created_at timestamptz NOT NULL,
  active_at timestamptz NOT NULL
);

-- Records to publish, written in the transaction that causes them, and deleted once Kafka has them.
CREATE TABLE outbox (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  topic text NOT NULL,
  subject text NOT NULL,
  value text NOT NULL
);

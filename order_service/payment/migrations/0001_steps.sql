-- What is asked of the provider, one row for each idempotency key, for ever: `payment_id`, or `refund_id`.

-- Two jobs are pumped on it (infrastructure/storage/job_queue.py): `ask` the provider, and `tell` what is known.
CREATE TABLE step (
  key text PRIMARY KEY,
  order_id text NOT NULL,
  user_id text NOT NULL,
  payment_id text NOT NULL,
  requestid text,
  traceparent text,
  -- What is wanted of it; a void outweighs a charge, and a charge a question.
  wish text NOT NULL CHECK (wish IN ('query', 'charge', 'void', 'refund')),
  amount bigint,
  currency text,
  token text,  -- until the outcome is known
  -- What the provider has said.
  state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'captured', 'declined', 'voided', 'refunded')),
  settled_amount bigint,
  settled_currency text,
  reason text,
  wanted_at timestamptz NOT NULL DEFAULT now(),
  doubted_at timestamptz,  -- since when it may have been made or not
  settled_at timestamptz,
  told text,
  ask_at timestamptz,
  ask_lease timestamptz,
  ask_attempts int NOT NULL DEFAULT 0,
  tell_at timestamptz,
  tell_lease timestamptz,
  tell_attempts int NOT NULL DEFAULT 0,
  CHECK ((state = 'open') = (settled_at IS NULL)),
  CHECK ((state IN ('captured', 'refunded')) = (settled_amount IS NOT NULL)),
  CHECK ((wish = 'refund') = (key <> payment_id))
) WITH (fillfactor = 70);
CREATE INDEX step_ask ON step (ask_at) WHERE ask_at IS NOT NULL;
CREATE INDEX step_tell ON step (tell_at) WHERE tell_at IS NOT NULL;
CREATE INDEX step_order ON step (order_id);

-- Whether the provider can be reached; `version` grows with each change.
CREATE TABLE provider (
  provider text PRIMARY KEY,
  available boolean NOT NULL,
  since timestamptz NOT NULL DEFAULT now(),
  version bigint NOT NULL DEFAULT 1
);

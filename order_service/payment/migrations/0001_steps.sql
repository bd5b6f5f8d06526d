-- Operations at the provider: one row for each idempotency key (`payment_id` or `refund_id`), never deleted.
--
-- The table is the queue of two jobs (infrastructure/storage/job_queue.py): `ask` sends the operation to the provider,
-- and `tell` publishes its outcome.
CREATE TABLE step (
  key text PRIMARY KEY,
  order_id text NOT NULL,
  user_id text NOT NULL,
  payment_id text NOT NULL,
  requestid text,
  traceparent text,
  -- The intent: a void takes precedence over a charge, and a charge over a query.
  wish text NOT NULL CHECK (wish IN ('query', 'charge', 'void', 'refund')),
  amount bigint,
  currency text,
  token text,  -- null once the outcome is known
  -- The outcome that the provider reported.
  state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'captured', 'declined', 'voided', 'refunded')),
  settled_amount bigint,
  settled_currency text,
  reason text,
  wanted_at timestamptz NOT NULL DEFAULT now(),
  doubted_at timestamptz,  -- the time since which the outcome is unknown
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

-- The availability of the provider; `version` grows with each change.
CREATE TABLE provider (
  provider text PRIMARY KEY,
  available boolean NOT NULL,
  since timestamptz NOT NULL DEFAULT now(),
  version bigint NOT NULL DEFAULT 1
);

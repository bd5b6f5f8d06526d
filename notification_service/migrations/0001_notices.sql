-- Every notice: its content, channel and outcome. Kept indefinitely, so that an event leads to one notice however often
-- its record is delivered.
--
-- `due_…` are the columns of the job that sends the notice, `told_…` of the job that publishes its outcome. A row with
-- a time in `due_at` or `told_at` has that job to do.
CREATE TABLE notice (
  notice_id text PRIMARY KEY,
  user_id text NOT NULL,
  cause text NOT NULL,
  channel text NOT NULL CHECK (channel IN ('email', 'sms', 'push')),
  template text NOT NULL,
  params jsonb NOT NULL,
  order_id text,
  too_late_at timestamptz,
  accepted_at timestamptz NOT NULL,
  stored_at timestamptz NOT NULL DEFAULT now(),
  status text NOT NULL CHECK (status IN ('queued', 'muted', 'skipped', 'sent', 'failed')),
  reason text NOT NULL DEFAULT '',
  settled_at timestamptz,
  tries int NOT NULL DEFAULT 0,
  traceparent text,
  -- The record that requested the notice last; it is dead-lettered if the notice fails permanently.
  request text,
  partition int NOT NULL,
  record_offset bigint NOT NULL,
  due_at timestamptz,
  due_lease timestamptz,
  due_attempts integer NOT NULL DEFAULT 0,
  told_at timestamptz,
  told_lease timestamptz,
  told_attempts integer NOT NULL DEFAULT 0,
  CONSTRAINT told_once UNIQUE (user_id, cause, channel)
) WITH (fillfactor = 70);
CREATE INDEX notice_due ON notice (channel, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX notice_untold ON notice (told_at) WHERE told_at IS NOT NULL;

-- The queue of each processor. A job queue works on a whole table, so each channel needs a view of its own.
CREATE VIEW email_queue AS SELECT * FROM notice WHERE channel = 'email';
CREATE VIEW sms_queue AS SELECT * FROM notice WHERE channel = 'sms';
CREATE VIEW push_queue AS SELECT * FROM notice WHERE channel = 'push';

-- A user without a row gets notices on every channel.
CREATE TABLE preference (
  user_id text PRIMARY KEY,
  email boolean NOT NULL,
  sms boolean NOT NULL,
  push boolean NOT NULL,
  accepted_at timestamptz NOT NULL
);

-- The contact of each order. This is the only personal data here, in a table of its own so that it can be erased.
CREATE TABLE contact (
  order_id text PRIMARY KEY,
  user_id text NOT NULL,
  email text NOT NULL,
  phone text,
  noted_at timestamptz NOT NULL
);
CREATE INDEX contact_of_user ON contact (user_id, noted_at);
CREATE INDEX contact_by_age ON contact (noted_at);

-- Erased users, so that an old record that is delivered again does not bring their contacts back.
CREATE TABLE forgotten (
  user_id text PRIMARY KEY,
  at timestamptz NOT NULL
);

-- The summary of an order as text, between its commit and its confirmation.
CREATE TABLE bought (
  order_id text PRIMARY KEY,
  user_id text NOT NULL,
  lines text NOT NULL,
  total text NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX bought_by_age ON bought (noted_at);

-- The part of each cart that is needed to warn of its expiry. An empty cart keeps its version as long as old records
-- may be delivered.
CREATE TABLE cart (
  user_id text PRIMARY KEY,
  version bigint NOT NULL,
  expires_at timestamptz,
  products jsonb NOT NULL,
  seen_at timestamptz NOT NULL DEFAULT now(),
  due_at timestamptz,
  due_lease timestamptz,
  due_attempts integer NOT NULL DEFAULT 0
) WITH (fillfactor = 70);
CREATE INDEX cart_due ON cart (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX cart_by_age ON cart USING brin (seen_at);

-- SMS taken by the simulated provider.
CREATE TABLE sms (
  notice_id text PRIMARY KEY,
  number text NOT NULL,
  text text NOT NULL,
  taken_at timestamptz NOT NULL DEFAULT now()
);

-- Every notice there ever was: what is to be told, on which channel, and what became of it. Kept for ever, so that an
-- event is told once however often it is heard of.
--
-- `due_…` is a channel's work, `told_…` the making known of what came of it: each is done by a pump, and a row that has
-- a time there has something to do.
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
  -- The record that asked for it last: what lies in the dead letters should it fail for good.
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

-- What each processor works off: a pump takes a table whole, so each channel is one.
CREATE VIEW email_queue AS SELECT * FROM notice WHERE channel = 'email';
CREATE VIEW sms_queue AS SELECT * FROM notice WHERE channel = 'sms';
CREATE VIEW push_queue AS SELECT * FROM notice WHERE channel = 'push';

-- Whoever said nothing has no row, and is told on every channel.
CREATE TABLE preference (
  user_id text PRIMARY KEY,
  email boolean NOT NULL,
  sms boolean NOT NULL,
  push boolean NOT NULL,
  accepted_at timestamptz NOT NULL
);

-- How a shopper is reached about an order. The only personal data here, in a table of their own so that it can be erased.
CREATE TABLE contact (
  order_id text PRIMARY KEY,
  user_id text NOT NULL,
  email text NOT NULL,
  phone text,
  noted_at timestamptz NOT NULL
);
CREATE INDEX contact_of_user ON contact (user_id, noted_at);
CREATE INDEX contact_by_age ON contact (noted_at);

-- Whoever was forgotten, so that an old record that comes again does not bring them back.
CREATE TABLE forgotten (
  user_id text PRIMARY KEY,
  at timestamptz NOT NULL
);

-- What an order comes to, in words, between its commit and its confirmation.
CREATE TABLE bought (
  order_id text PRIMARY KEY,
  user_id text NOT NULL,
  lines text NOT NULL,
  total text NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX bought_by_age ON bought (noted_at);

-- So much of each cart as it takes to warn of its end. An empty one keeps its version for as long as old records may come.
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

-- What the simulated SMS provider has taken.
CREATE TABLE sms (
  notice_id text PRIMARY KEY,
  number text NOT NULL,
  text text NOT NULL,
  taken_at timestamptz NOT NULL DEFAULT now()
);

-- Orders with a captured payment. A contact is proven by a paid order: without one, nobody has shown that the order is
-- meant, and e-mail and SMS are not sent to the contact on the shop's own initiative.
CREATE TABLE paid_order (
  order_id text PRIMARY KEY,
  user_id text NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX paid_order_by_age ON paid_order (noted_at);
INSERT INTO paid_order (order_id, user_id)
SELECT DISTINCT ON (order_id) order_id, user_id FROM notice
 WHERE order_id IS NOT NULL AND template IN ('order_confirmed', 'order_shipped', 'order_delivered', 'order_refunded')
ON CONFLICT DO NOTHING;

-- Names of products in the catalogue, the latest version of each.
CREATE TABLE product_name (
  code text PRIMARY KEY,
  name text NOT NULL,
  version bigint NOT NULL
);

-- E-mails and SMS that were handed over or are about to be, for the limits by recipient. `recipient` is a digest of the
-- address or number. Rows are kept for a day.
CREATE TABLE recipient_claim (
  notice_id text PRIMARY KEY,
  channel text NOT NULL,
  recipient text NOT NULL,
  by_service boolean NOT NULL,
  claimed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX recipient_claim_of_recipient ON recipient_claim (channel, recipient, by_service, claimed_at);
CREATE INDEX recipient_claim_of_channel ON recipient_claim (channel, claimed_at);
CREATE INDEX recipient_claim_by_age ON recipient_claim (claimed_at);

-- `by_service`: another service requested the notice. `proven_only`: e-mail and SMS go to proven contacts only.
ALTER TABLE notice ADD COLUMN by_service boolean NOT NULL DEFAULT false;
ALTER TABLE notice ADD COLUMN proven_only boolean NOT NULL DEFAULT false;
CREATE INDEX notice_by_age ON notice (accepted_at) WHERE due_at IS NULL AND told_at IS NULL;
CREATE INDEX sms_by_age ON sms (taken_at);

-- The columns of a view are fixed when it is created.
CREATE OR REPLACE VIEW email_queue AS SELECT * FROM notice WHERE channel = 'email';
CREATE OR REPLACE VIEW sms_queue AS SELECT * FROM notice WHERE channel = 'sms';
CREATE OR REPLACE VIEW push_queue AS SELECT * FROM notice WHERE channel = 'push';

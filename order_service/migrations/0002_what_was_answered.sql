-- The reply to each request about an order; `refused` is null if it was accepted. The reply is stored because a refusal
-- results in no event, and a request that was refused may be possible when its record is delivered again.
CREATE TABLE answered (
  order_id text NOT NULL,
  user_id text NOT NULL,
  request_id text NOT NULL,
  type text NOT NULL,
  refused text,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (order_id, user_id, request_id, type)
);
CREATE INDEX answered_at ON answered (at);

-- What a request about an order was answered; `refused` is null for one that was accepted. A refusal leaves no event, and
-- what was not possible then may be possible when the request is delivered again.
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

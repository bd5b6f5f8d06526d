-- Ends of carts that a request came upon, until their knock is on the topic: that request is never asked about them again,
-- so who dies between the decision and its telling would leave nobody to tell. By presence; the knock tells it, and goes.
CREATE TABLE untold_expiry (
  user_id text NOT NULL,
  due timestamptz NOT NULL,
  revision bigint NOT NULL,
  PRIMARY KEY (user_id, due, revision)
);

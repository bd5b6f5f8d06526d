-- Expiries of carts that a request found, until an expiry request for them is on the topic. A repeat of the request
-- that found the expiry repeats only its own outcome. If its worker crashed after the commit and before publishing, the
-- expiry would never be published; the handler of the expiry request publishes it again.
CREATE TABLE untold_expiry (
  user_id text NOT NULL,
  due timestamptz NOT NULL,
  revision bigint NOT NULL,
  PRIMARY KEY (user_id, due, revision)
);

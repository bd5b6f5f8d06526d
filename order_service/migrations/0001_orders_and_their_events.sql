-- The state of an order follows from its events. All other tables can be computed from them, or contain work in hand.

-- The event store. The key is the optimistic lock: of two writers that saw the same version, one fails.
CREATE TABLE order_event (
  order_id text NOT NULL,
  version int NOT NULL CHECK (version > 0),
  type text NOT NULL,
  data jsonb NOT NULL,
  at timestamptz NOT NULL,
  PRIMARY KEY (order_id, version)
);

CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the event store is only ever added to' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON order_event FOR EACH ROW EXECUTE FUNCTION append_only();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON order_event FOR EACH STATEMENT EXECUTE FUNCTION append_only();

-- The read side: one row per order, which is locked while a message about the order is handled. Version 0: a message
-- about an order that is not placed yet. Amounts are in minor units. The columns from `due_at` on are work in hand and
-- are not folded from events. `published` is the last version on the topics.
CREATE TABLE orders (
  order_id text PRIMARY KEY,
  user_id text NOT NULL,
  version int NOT NULL DEFAULT 0,
  status text,
  reason text,
  currency text,
  total bigint,
  captured bigint,
  refunded bigint NOT NULL DEFAULT 0,
  refunding bigint NOT NULL DEFAULT 0,
  placed_at timestamptz,
  changed_at timestamptz,
  due_at timestamptz,
  attempts int NOT NULL DEFAULT 0,
  published int NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE INDEX orders_of_user ON orders (user_id);
CREATE INDEX orders_due ON orders (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX orders_unpublished ON orders (changed_at) WHERE published < version;

-- Personal data, which no event contains, so that it can be erased: address, contact and payment token.
CREATE TABLE order_private (
  order_id text PRIMARY KEY,
  address jsonb NOT NULL,
  contact jsonb NOT NULL,
  payment jsonb NOT NULL
);

-- Messages that arrived too early: a decision before its order was placed, a cancellation before the decision.
CREATE TABLE waiting (
  order_id text NOT NULL,
  request_id text NOT NULL,
  type text NOT NULL,
  user_id text NOT NULL,
  message jsonb NOT NULL,
  came_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (order_id, request_id, type)
);

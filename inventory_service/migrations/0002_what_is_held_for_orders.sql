-- Holds that move from a cart to an order stay in the table, so that the order remains known after the request log has
-- forgotten it. `state`: the stock is held (PENDING), sold (COMMITTED) or released (CANCELLED).
ALTER TABLE hold
  ADD COLUMN state text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'COMMITTED', 'CANCELLED')),
  ADD CONSTRAINT open_holds_are_pending CHECK (order_id IS NOT NULL OR state = 'PENDING');
CREATE UNIQUE INDEX hold_of_order ON hold (order_id, product_code) WHERE order_id IS NOT NULL;

-- The user and the purpose of each order or reservation. `revision` is the cart's after the commit, and is part of the
-- commit's outcome. An order without holds was released before its commit arrived; that commit is refused.
CREATE TABLE reservation (
  order_id text PRIMARY KEY,
  user_id text NOT NULL,
  purpose text CHECK (purpose IN ('order', 'reservation')),
  revision bigint NOT NULL,
  reserved_at timestamptz NOT NULL DEFAULT now()
);

-- True if the cart's last change was its expiry; a checkout is then refused as `expired`.
ALTER TABLE holder ADD COLUMN expired boolean NOT NULL DEFAULT false;

-- The order for which units were sold, released or restocked.
ALTER TABLE stock_ledger ADD COLUMN order_id text;

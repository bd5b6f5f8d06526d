-- Holds that leave a cart for an order stay here, whatever becomes of them: by them an order is known for ever, while
-- the request log forgets. `state` says whether they keep the stock, were sold, or were given back.
ALTER TABLE hold
  ADD COLUMN state text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'COMMITTED', 'CANCELLED')),
  ADD CONSTRAINT open_holds_are_pending CHECK (order_id IS NOT NULL OR state = 'PENDING');
CREATE UNIQUE INDEX hold_of_order ON hold (order_id, product_code) WHERE order_id IS NOT NULL;

-- Whose an order is and whom it is for; `revision` is the cart's after the commit, which is told again with it. One that
-- has no holds was given up before its commit came: that comes too late now, whenever it comes.
CREATE TABLE reservation (
  order_id text PRIMARY KEY,
  user_id text NOT NULL,
  purpose text CHECK (purpose IN ('order', 'reservation')),
  revision bigint NOT NULL,
  reserved_at timestamptz NOT NULL DEFAULT now()
);

-- Whether the cart's last change was its end: who checks it out then is told so.
ALTER TABLE holder ADD COLUMN expired boolean NOT NULL DEFAULT false;

-- For which order units were sold, came back or were given back.
ALTER TABLE stock_ledger ADD COLUMN order_id text;

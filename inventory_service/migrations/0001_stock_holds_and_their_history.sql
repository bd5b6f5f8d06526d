-- Current stock and holds, and two histories: the outcomes of requests, and the changes of stock with their causes.
-- No foreign keys: each new cart line would take a shared lock on its product's row, the most contended row there is.

-- fillfactor leaves room on the page for the next version of a row, so that an update touches no index (HOT).
CREATE TABLE inventory (
  product_code text PRIMARY KEY,
  received int NOT NULL,
  held int NOT NULL DEFAULT 0,
  sold int NOT NULL DEFAULT 0,
  quantity int GENERATED ALWAYS AS (received - sold) STORED,
  price_minor bigint NOT NULL CHECK (price_minor >= 0),
  currency text NOT NULL,
  version bigint NOT NULL DEFAULT 0,
  CONSTRAINT never_oversold CHECK (held >= 0 AND sold >= 0 AND held + sold <= received)
) WITH (fillfactor = 50);

-- The catalogue. `tx` is the transaction that last changed the row, from which the publisher finds changes.
CREATE TABLE product (
  code text PRIMARY KEY,
  name text NOT NULL,
  category text,
  images text[] NOT NULL DEFAULT '{}',
  deleted boolean NOT NULL DEFAULT false,
  version bigint NOT NULL DEFAULT 1,
  tx xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX product_tx ON product (tx);

-- One row per shopper, kept indefinitely, because revisions never restart. `due_from` is the expiry rounded down to the
-- minute: every request would update an index on the exact time, but this index at most once per minute and cart.
CREATE TABLE holder (
  user_id text PRIMARY KEY,
  revision bigint NOT NULL DEFAULT 0,
  first_held_at timestamptz,
  expires_at timestamptz,
  due_from timestamptz GENERATED ALWAYS AS (date_bin('1 minute', expires_at, '2000-01-01 00:00:00+00')) STORED
) WITH (fillfactor = 50);
CREATE INDEX holder_due ON holder (due_from) WHERE due_from IS NOT NULL;

-- A hold without `order_id` is a cart line; with `order_id` it belongs to an order.
CREATE TABLE hold (
  user_id text NOT NULL,
  product_code text NOT NULL,
  hold_quantity int NOT NULL CHECK (hold_quantity > 0),
  price_minor bigint NOT NULL,
  currency text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  order_id text
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX hold_open ON hold (user_id, product_code) WHERE order_id IS NULL;

CREATE VIEW available_products AS
SELECT i.product_code, p.name, i.quantity - i.held AS available_quantity
  FROM inventory AS i JOIN product AS p ON p.code = i.product_code
 WHERE NOT p.deleted;

-- The one outcome of each request. BRIN is enough to find old rows, which are stored in the order of their time.
CREATE TABLE request_log (
  user_id text NOT NULL,
  requestid text NOT NULL,
  command jsonb NOT NULL,
  outcome jsonb NOT NULL,
  revision bigint NOT NULL,
  decided_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, requestid)
);
CREATE INDEX request_log_age ON request_log USING brin (decided_at) WITH (autosummarize = on);

-- Every change of stock with its cause, as differences. Kept indefinitely, and therefore partitioned by month.
CREATE TABLE stock_ledger (
  product_code text NOT NULL,
  version bigint NOT NULL,
  user_id text,
  requestid text,
  cause text NOT NULL,
  received int NOT NULL,
  held int NOT NULL,
  sold int NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  tx xid8 NOT NULL DEFAULT pg_current_xact_id()
) PARTITION BY RANGE (at);
CREATE INDEX stock_ledger_tx ON stock_ledger (tx);
-- Takes the rows of a month whose partition was not created in time.
CREATE TABLE stock_ledger_rest PARTITION OF stock_ledger DEFAULT;

CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the stock ledger is only ever added to' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON stock_ledger FOR EACH ROW EXECUTE FUNCTION append_only();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON stock_ledger FOR EACH STATEMENT EXECUTE FUNCTION append_only();
-- A statement trigger covers only the table that the statement names, so each partition needs its own.
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON stock_ledger_rest FOR EACH STATEMENT EXECUTE FUNCTION append_only();

-- Creates the ledger's partitions for this month and the next two; called at every start and by the retention job.
CREATE FUNCTION make_ledger_months() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  first timestamptz;
  part text;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || ' ledger months', 0));  -- replicas do this too
  FOR ahead IN 0..2 LOOP
    first := date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + make_interval(months => ahead);
    part := 'stock_ledger_' || to_char(first AT TIME ZONE 'UTC', 'YYYY_MM');
    IF to_regclass(part) IS NULL THEN
      EXECUTE format('CREATE TABLE %I (LIKE stock_ledger INCLUDING DEFAULTS)', part);
      EXECUTE format('ALTER TABLE stock_ledger ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', part, first, first + interval '1 month');
      EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION append_only()', part);
    END IF;
  END LOOP;
END $$;
SELECT make_ledger_months();

-- Position of the publisher: the changes of every transaction before `position` are on the topics.
CREATE TABLE publisher (
  only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  position xid8 NOT NULL
);
INSERT INTO publisher (position) VALUES ('0');

-- Facts that have been counted, by the hash of their natural keys. A row is deleted once its fact can no longer be
-- delivered again.
CREATE TABLE counted (
    key   uuid PRIMARY KEY,
    until timestamptz NOT NULL
);

CREATE INDEX counted_until ON counted (until);

-- The figures of each window with at least one fact. `currency` is empty for figures that are not amounts of money.
CREATE TABLE tally (
    by       text NOT NULL CHECK (by IN ('minute', 'hour', 'day')),
    start    timestamptz NOT NULL,
    figure   text NOT NULL,
    currency text NOT NULL,
    value    bigint NOT NULL,
    PRIMARY KEY (by, start, figure, currency)
) WITH (fillfactor = 70);

-- A window's `version` grows with each change of its tallies. `told` is the version that was published last.
CREATE TABLE tally_window (
    by      text NOT NULL,
    start   timestamptz NOT NULL,
    version bigint NOT NULL,
    told    bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (by, start)
) WITH (fillfactor = 70);

CREATE INDEX tally_window_untold ON tally_window (start) WHERE told < version;

-- Each order as a basket, never deleted: the tables below can be computed from these rows.
CREATE TABLE basket (
    order_id  text PRIMARY KEY,
    products  text[],
    cancelled boolean NOT NULL DEFAULT false
);

-- The number of baskets that count: committed and not cancelled. One row.
CREATE TABLE basket_total (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    orders bigint NOT NULL
);

INSERT INTO basket_total (orders) VALUES (0);

-- The number of counted baskets with a product. `changes` grows with each change of its pairs. `told` is the value of
-- `changes` that was published last, as `version`, when there were `told_of` orders.
CREATE TABLE bought (
    product text PRIMARY KEY,
    orders  bigint NOT NULL,
    changes bigint NOT NULL DEFAULT 1,
    told    bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    told_of bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

CREATE INDEX bought_untold ON bought (product) WHERE told < changes;

-- The number of counted baskets with both products of a pair, in the order of their codes.
CREATE TABLE bought_together (
    first  text COLLATE "C" NOT NULL,
    second text COLLATE "C" NOT NULL CHECK (first < second),
    orders bigint NOT NULL,
    PRIMARY KEY (first, second)
) WITH (fillfactor = 70);

CREATE INDEX bought_together_second ON bought_together (second);

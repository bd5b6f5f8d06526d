-- What has been counted already, by the hash of its natural key; forgotten when it can no longer come again.
CREATE TABLE counted (
    key   uuid PRIMARY KEY,
    until timestamptz NOT NULL
);

CREATE INDEX counted_until ON counted (until);

-- The figures of each window that something happened in. `currency` is empty for what is no money.
CREATE TABLE tally (
    by       text NOT NULL CHECK (by IN ('minute', 'hour', 'day')),
    start    timestamptz NOT NULL,
    figure   text NOT NULL,
    currency text NOT NULL,
    value    bigint NOT NULL,
    PRIMARY KEY (by, start, figure, currency)
) WITH (fillfactor = 70);

-- A window's `version` grows with each change of its tallies; up to `told` it has been published.
CREATE TABLE tally_window (
    by      text NOT NULL,
    start   timestamptz NOT NULL,
    version bigint NOT NULL,
    told    bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (by, start)
) WITH (fillfactor = 70);

CREATE INDEX tally_window_untold ON tally_window (start) WHERE told < version;

-- Each order as a basket, for ever: from these rows everything below could be counted again.
CREATE TABLE basket (
    order_id  text PRIMARY KEY,
    products  text[],
    cancelled boolean NOT NULL DEFAULT false
);

-- How many baskets count: committed, not cancelled. One row.
CREATE TABLE basket_total (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    orders bigint NOT NULL
);

INSERT INTO basket_total (orders) VALUES (0);

-- In how many of them a product is. `changes` grows with each change of what is bought together with it; up to
-- `told` it has been published, last as `version`, when there were `told_of` orders.
CREATE TABLE bought (
    product text PRIMARY KEY,
    orders  bigint NOT NULL,
    changes bigint NOT NULL DEFAULT 1,
    told    bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    told_of bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

CREATE INDEX bought_untold ON bought (product) WHERE told < changes;

-- In how many of them two products are; the pair in the order of their codes.
CREATE TABLE bought_together (
    first  text COLLATE "C" NOT NULL,
    second text COLLATE "C" NOT NULL CHECK (first < second),
    orders bigint NOT NULL,
    PRIMARY KEY (first, second)
) WITH (fillfactor = 70);

CREATE INDEX bought_together_second ON bought_together (second);

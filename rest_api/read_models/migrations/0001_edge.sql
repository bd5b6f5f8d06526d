-- The read model of the catalogue, fed from two topics that may tell of a product in either order: `version` 0 is a
-- product of which only the stock is known yet, `stock_version` 0 one of which only the catalogue has spoken.
CREATE TABLE product (
    code          text PRIMARY KEY,
    version       bigint NOT NULL DEFAULT 0,
    name          text NOT NULL DEFAULT '',
    category      text,
    amount        bigint NOT NULL DEFAULT 0,
    currency      text NOT NULL DEFAULT '',
    images        text[] NOT NULL DEFAULT '{}',
    deleted       boolean NOT NULL DEFAULT false,
    available     integer NOT NULL DEFAULT 0,
    stock_version bigint NOT NULL DEFAULT 0,
    -- Words as a search has them: letters and digits, whatever stands between.
    search        tsvector GENERATED ALWAYS AS (
        to_tsvector('simple', regexp_replace(code || ' ' || name, '[^[:alnum:]]+', ' ', 'g'))) STORED
);

CREATE INDEX product_search ON product USING gin (search);
CREATE INDEX product_by_name ON product (name, code) WHERE version > 0 AND NOT deleted;
CREATE INDEX product_by_amount ON product (amount, code) WHERE version > 0 AND NOT deleted;
CREATE INDEX product_by_available ON product (available, code) WHERE version > 0 AND NOT deleted;
CREATE INDEX product_by_category ON product (category, code) WHERE version > 0 AND NOT deleted;

-- How far each partition of those topics is in `product`: written in the same transaction.
CREATE TABLE position (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- Who used an idempotency key for what, and what was answered.
CREATE TABLE claim (
    user_id     text NOT NULL,
    id          text NOT NULL,
    fingerprint text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    claimed_at  timestamptz NOT NULL DEFAULT now(),
    status      integer,
    answer      bytea,
    PRIMARY KEY (user_id, id)
);

CREATE INDEX claim_by_age ON claim (created_at);

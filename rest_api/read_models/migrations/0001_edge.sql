-- The read model of the catalogue, from two topics whose records may arrive in either order. `version` is 0 while only
-- the stock of a product is known, and `stock_version` is 0 while only its catalogue entry is known.
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
    -- The words of code and name: runs of letters and digits.
    search        tsvector GENERATED ALWAYS AS (
        to_tsvector('simple', regexp_replace(code || ' ' || name, '[^[:alnum:]]+', ' ', 'g'))) STORED
);

CREATE INDEX product_search ON product USING gin (search);
CREATE INDEX product_by_name ON product (name, code) WHERE version > 0 AND NOT deleted;
CREATE INDEX product_by_amount ON product (amount, code) WHERE version > 0 AND NOT deleted;
CREATE INDEX product_by_available ON product (available, code) WHERE version > 0 AND NOT deleted;
CREATE INDEX product_by_category ON product (category, code) WHERE version > 0 AND NOT deleted;

-- The position up to which each partition of those topics is in `product`, written in the same transaction.
CREATE TABLE position (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- Idempotency keys: the user, the fingerprint of the request, and the response.
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

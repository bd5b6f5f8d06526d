-- The read model of the insights, from two compacted topics; the greatest version of each row is kept.
CREATE TABLE related (
    product text PRIMARY KEY,
    version bigint NOT NULL,
    items   jsonb NOT NULL
);

CREATE TABLE figures (
    by      text NOT NULL,
    start   timestamptz NOT NULL,
    version bigint NOT NULL,
    data    jsonb NOT NULL,
    PRIMARY KEY (by, start)
);

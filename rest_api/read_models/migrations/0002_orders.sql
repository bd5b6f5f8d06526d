-- The read model of orders, fed from three topics. An order's row is folded from its events whenever one of them comes,
-- so it does not matter in which order, or how often, they do.
CREATE TABLE order_event (
    order_id text NOT NULL,
    version  bigint NOT NULL,
    type     text NOT NULL,
    at       timestamptz NOT NULL,
    data     jsonb NOT NULL,
    PRIMARY KEY (order_id, version)
);

-- What payments and deliveries told of an order: `kind` is the service.
CREATE TABLE order_step (
    order_id text NOT NULL,
    kind     text NOT NULL,
    event_id text NOT NULL,
    type     text NOT NULL,
    at       timestamptz NOT NULL,
    data     jsonb NOT NULL,
    PRIMARY KEY (order_id, kind, event_id)
);

-- `version` 0 is an order that this edge has asked for and that no event has told of yet.
CREATE TABLE placed_order (
    order_id   text PRIMARY KEY,
    user_id    text NOT NULL,
    version    bigint NOT NULL DEFAULT 0,
    status     text NOT NULL DEFAULT 'placed',
    reason     text,
    lines      jsonb NOT NULL DEFAULT '[]',
    total      jsonb,
    refunded   jsonb,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE INDEX placed_order_by_user ON placed_order (user_id, created_at DESC, order_id DESC);
CREATE INDEX placed_order_by_age ON placed_order (created_at DESC, order_id DESC);

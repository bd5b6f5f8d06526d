-- The read model of orders, from three topics. An order's row is folded again from all its events whenever one arrives,
-- so neither their order nor repeats matter.
CREATE TABLE order_event (
    order_id text NOT NULL,
    version  bigint NOT NULL,
    type     text NOT NULL,
    at       timestamptz NOT NULL,
    data     jsonb NOT NULL,
    PRIMARY KEY (order_id, version)
);

-- Events of payments and deliveries by order; `kind` is the service.
CREATE TABLE order_step (
    order_id text NOT NULL,
    kind     text NOT NULL,
    event_id text NOT NULL,
    type     text NOT NULL,
    at       timestamptz NOT NULL,
    data     jsonb NOT NULL,
    PRIMARY KEY (order_id, kind, event_id)
);

-- `version` 0 is an order that this edge has requested and that has no event yet.
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

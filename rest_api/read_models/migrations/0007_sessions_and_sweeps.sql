-- The guests who have renewed a token, until all their tokens have expired. Tokens from before `valid_from` have ended;
-- those from before `issued_at` (Unix times) end an overlap after it.
CREATE TABLE guest_session (
    user_id    text PRIMARY KEY,
    valid_from bigint NOT NULL DEFAULT 0,
    issued_at  bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    ends_at    timestamptz NOT NULL
);
CREATE INDEX guest_session_by_change ON guest_session (changed_at);
CREATE INDEX guest_session_by_end ON guest_session (ends_at);

-- Orders without stock, for their retention.
CREATE INDEX placed_order_refused ON placed_order (created_at)
    WHERE lines = '[]' AND status IN ('placed', 'cancelled');

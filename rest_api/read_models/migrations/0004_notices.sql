-- The read model of notices, from `notifications.events`; the last outcome of each notice is kept.
CREATE TABLE notice (
    notice_id   text PRIMARY KEY,
    user_id     text NOT NULL,
    channel     text NOT NULL,
    template    text NOT NULL,
    cause       text NOT NULL,
    title       text NOT NULL,
    body        text NOT NULL,
    status      text NOT NULL,
    accepted_at timestamptz NOT NULL,
    settled_at  timestamptz NOT NULL
);
CREATE INDEX notice_of_user ON notice (user_id, accepted_at DESC, notice_id DESC);

-- The channels that each user wants; a user without a row gets notices on all channels.
CREATE TABLE notice_preference (
    user_id text PRIMARY KEY,
    email   boolean NOT NULL,
    sms     boolean NOT NULL,
    push    boolean NOT NULL,
    since   timestamptz NOT NULL
);

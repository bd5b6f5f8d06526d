-- One row for each shipment, never deleted. `moves` contains the states of the parcel, in order.
--
-- The table is the queue of two jobs (infrastructure/storage/job_queue.py): `move` queries the carrier at `move_at`,
-- and `tell` publishes new moves.
CREATE TABLE parcel (
  shipment_id text PRIMARY KEY,
  order_id text NOT NULL,
  user_id text NOT NULL,
  requestid text,
  traceparent text,
  wish text NOT NULL CHECK (wish IN ('book', 'call-off')),
  address jsonb,  -- null once the parcel has reached a final state
  state text NOT NULL DEFAULT 'wanted'
    CHECK (state IN ('wanted', 'booked', 'shipped', 'delivered', 'failed', 'called-off')),
  carrier text,
  tracking text,
  booked_at timestamptz,
  -- [{"to": state, "at": time, "reason"?}]: each is published as one event. `told` is the number of published ones.
  moves jsonb NOT NULL DEFAULT '[]',
  told int NOT NULL DEFAULT 0,
  wanted_at timestamptz NOT NULL DEFAULT now(),
  moved_at timestamptz NOT NULL DEFAULT now(),
  move_at timestamptz,
  move_lease timestamptz,
  move_attempts int NOT NULL DEFAULT 0,
  tell_at timestamptz,
  tell_lease timestamptz,
  tell_attempts int NOT NULL DEFAULT 0,
  CHECK ((state IN ('booked', 'shipped', 'delivered', 'failed')) <= (tracking IS NOT NULL))
) WITH (fillfactor = 70);
CREATE INDEX parcel_move ON parcel (move_at) WHERE move_at IS NOT NULL;
CREATE INDEX parcel_tell ON parcel (tell_at) WHERE tell_at IS NOT NULL;
CREATE INDEX parcel_order ON parcel (order_id);

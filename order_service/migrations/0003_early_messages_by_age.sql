-- For the retention of early messages whose order is never placed.
CREATE INDEX waiting_by_age ON waiting (came_at);

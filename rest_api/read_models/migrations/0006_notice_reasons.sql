-- Why a notice was not sent, and an index for the retention of notices.
ALTER TABLE notice ADD COLUMN reason text NOT NULL DEFAULT '';
CREATE INDEX notice_by_age ON notice (settled_at);

-- Fingerprints of requests for notices had their text, which may be personal data. A digest of it says the same.
UPDATE claim
   SET fingerprint = 'POST /v1/notifications '
                     || encode(sha256(convert_to(substr(fingerprint, length('POST /v1/notifications ') + 1), 'UTF8')), 'hex')
 WHERE fingerprint LIKE 'POST /v1/notifications {%';
UPDATE claim
   SET fingerprint = 'PUT /v1/notifications/preferences '
                     || encode(sha256(convert_to(substr(fingerprint, length('PUT /v1/notifications/preferences ') + 1), 'UTF8')), 'hex')
 WHERE fingerprint LIKE 'PUT /v1/notifications/preferences {%';

-- The address of the user's account, for mails about the account itself. Erased when the mail is sent.
ALTER TABLE notice ADD COLUMN recipient text;

-- The columns of a view are fixed when it is created.
CREATE OR REPLACE VIEW email_queue AS SELECT * FROM notice WHERE channel = 'email';
CREATE OR REPLACE VIEW sms_queue AS SELECT * FROM notice WHERE channel = 'sms';
CREATE OR REPLACE VIEW push_queue AS SELECT * FROM notice WHERE channel = 'push';

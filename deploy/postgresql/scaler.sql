-- The role with which KEDA asks for the age of the queue: it sees no address and no text.
-- psql "$DATABASE" --file scaler.sql, as the owner of the tables, then \password mailer_scaler. Once.
CREATE ROLE mailer_scaler LOGIN CONNECTION LIMIT 5;
ALTER ROLE mailer_scaler SET statement_timeout = '5s';
GRANT SELECT (status, lane, due_at, expires_at, rank, tenant, attempts) ON mailer_delivery TO mailer_scaler;
GRANT SELECT (scope, key) ON mailer_pause TO mailer_scaler;

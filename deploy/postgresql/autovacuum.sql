-- Autovacuum for the tables of Mailer, for more than a few mails a second. docs/scaling.md has the measurements.
-- psql "$DATABASE" --file autovacuum.sql, as their owner. It can be repeated, and a later migration keeps it.

-- Each mail leaves three dead rows here. By default, PostgreSQL waits until a fifth of the table is dead, and the table has all
-- mail of MAILER_KEEP_DAYS. No truncation: it would lock out the workers for a moment, and the space is needed again at once.
ALTER TABLE mailer_delivery SET (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 50000,
    autovacuum_analyze_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = false
);

-- Only the purge leaves dead rows here.
ALTER TABLE mailer_message SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = false,
    toast.autovacuum_vacuum_scale_factor = 0.02,
    toast.autovacuum_vacuum_cost_delay = 0,
    toast.vacuum_truncate = false
);

-- `began_at` is written once by the store and never changes, and with it neither do `hour` and the partition of a job.
-- What another writer inserts without it began when it says.
ALTER TABLE oot_workflow_job
    ADD COLUMN IF NOT EXISTS began_at DateTime64(9, 'UTC') DEFAULT if(toUnixTimestamp(started_at) = 0, completed_at, started_at) AFTER changed_at,
    MODIFY COLUMN hour DateTime('UTC') MATERIALIZED toStartOfHour(toDateTime(began_at, 'UTC')),
    ADD COLUMN IF NOT EXISTS pr_author LowCardinality(String) AFTER pr_number;

-- Jobs that did not say when they began: they moved away from here when they ended. Those that still run come again
-- from the store when they change, or with the next reconciliation.
ALTER TABLE oot_workflow_job DELETE WHERE hour = 0 AND status = 'in_progress';

ALTER TABLE oot_dead_letter ADD COLUMN IF NOT EXISTS began_at String AFTER changed_at;

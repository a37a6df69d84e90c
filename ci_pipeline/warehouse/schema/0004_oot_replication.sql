-- When the store was written to, by its own clock: the times of a job are what its sender says.
ALTER TABLE oot_workflow_job
    ADD COLUMN IF NOT EXISTS changed_at DateTime64(6, 'UTC') AFTER version,
    ADD INDEX IF NOT EXISTS changed_at changed_at TYPE minmax GRANULARITY 1;

-- Changes that `oot_workflow_job` refused, the last of each job; `pending` until one is replayed.
CREATE TABLE IF NOT EXISTS oot_dead_letter
(
    dynamoKey String CODEC(ZSTD),
    record String CODEC(ZSTD),
    record_version UInt64,
    changed_at Float64,
    reason String,
    pending Bool,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY dynamoKey;

-- How a backend did on one day (UTC), its nightlies apart. A day that is made again has a higher `version`, and only its
-- rows of the highest one count.
CREATE TABLE IF NOT EXISTS oot_backend_health
(
    day Date,
    downstream_repo LowCardinality(String),
    nightly Bool,
    downstream_repo_level LowCardinality(String),
    total UInt64,
    success UInt64,
    failure UInt64,
    timed_out UInt64,
    pull_requests UInt64,
    failed_tests UInt64,
    average_duration Nullable(Float64),
    average_queue_time Nullable(Float64),
    last_run_at DateTime64(9, 'UTC'),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (day, downstream_repo, nightly);

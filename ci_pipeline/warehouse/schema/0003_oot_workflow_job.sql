-- Out-of-tree jobs, one row per execution, as the store has them; columns as in its record. The row with the highest
-- `version` wins: a job that completed has a higher one than while it was in progress, whichever arrives last.
-- A time that is not known is 1970. A job keeps its `started_at` and with it its `hour`, so its versions meet in one
-- partition and are counted in one place.

CREATE TABLE IF NOT EXISTS oot_workflow_job
(
    dynamoKey String CODEC(ZSTD),
    status LowCardinality(String),
    conclusion LowCardinality(String),
    downstream_repo LowCardinality(String),
    downstream_repo_level LowCardinality(String),
    upstream_repo LowCardinality(String),
    event_type LowCardinality(String),
    delivery_id String CODEC(ZSTD),
    pr_number UInt64,
    pytorch_head_sha String CODEC(ZSTD),
    workflow_name LowCardinality(String),
    workflow_run_url String CODEC(ZSTD),
    job_name LowCardinality(String),
    check_run_id String CODEC(ZSTD),
    run_id String CODEC(ZSTD),
    run_attempt UInt32,
    started_at DateTime64(9, 'UTC'),
    completed_at DateTime64(9, 'UTC'),
    queue_time Nullable(Float64),
    execution_time Nullable(Float64),
    passed_tests UInt64,
    failed_tests UInt64,
    skipped_tests UInt64,
    total_tests UInt64,
    failed_tests_json String CODEC(ZSTD),
    artifact_url String CODEC(ZSTD),
    environment String CODEC(ZSTD),
    version UInt64,
    _inserted_at DateTime64(9, 'UTC') MATERIALIZED now64(9),
    hour DateTime('UTC') MATERIALIZED toStartOfHour(toDateTime(if(toUnixTimestamp(started_at) = 0, completed_at, started_at), 'UTC')),
    repository_full_name String ALIAS downstream_repo,
    duration_seconds Int64 ALIAS if(completed_at <= started_at OR toUnixTimestamp(started_at) = 0, 0, dateDiff('second', started_at, completed_at)),
    INDEX status status TYPE set(8) GRANULARITY 1,
    INDEX started_at started_at TYPE minmax GRANULARITY 1,
    INDEX completed_at completed_at TYPE minmax GRANULARITY 1,
    INDEX pr_number pr_number TYPE bloom_filter GRANULARITY 1,
    INDEX downstream_repo downstream_repo TYPE set(100) GRANULARITY 1,
    INDEX _inserted_at _inserted_at TYPE minmax GRANULARITY 1,
    PROJECTION newest (SELECT max(_inserted_at))
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toMonday(hour)
ORDER BY (downstream_repo, delivery_id, dynamoKey)
SETTINGS index_granularity = 1024, deduplicate_merge_projection_mode = 'rebuild';

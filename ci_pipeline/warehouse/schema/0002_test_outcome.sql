-- Ordered for the history of one test, which small granules make twice as fast. A run's rows are scattered over all of it,
-- so no skip index could find them: the projection keeps them together once more. The outcome and the message end the key,
-- because a test may end twice (it passed, its teardown did not) and skips at one place may have several reasons: nothing
-- may replace anything else.

CREATE TABLE IF NOT EXISTS test_outcome
(
    repository LowCardinality(String),
    run_id Int64,
    run_attempt Int32,
    run_created_at DateTime64(6, 'UTC'),
    test_job LowCardinality(String),
    matrix_entry LowCardinality(String),
    device LowCardinality(String),
    node_id String CODEC(ZSTD),
    postfix LowCardinality(String),
    outcome LowCardinality(String),
    message String CODEC(ZSTD),
    trace String CODEC(ZSTD),
    seconds Nullable(Float64),
    category LowCardinality(String),
    version UInt64,
    PROJECTION by_run
    (
        SELECT *
        ORDER BY repository, run_id, test_job, outcome
    )
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(run_created_at)
PRIMARY KEY (repository, node_id, device, test_job)
ORDER BY (repository, node_id, device, test_job, matrix_entry, postfix, run_id, run_attempt, outcome, message)
SETTINGS index_granularity = 1024, deduplicate_merge_projection_mode = 'rebuild';

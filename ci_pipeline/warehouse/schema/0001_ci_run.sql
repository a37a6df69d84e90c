-- Every row carries the `version` of the write that it came with. A run is written table by table, with its row here as the
-- last; from then on its rows of lower versions and of other attempts count no more, whether they were replaced or not: a
-- second write may have fewer rows. Until then readers see too much rather than too little. No row is ever deleted for
-- that (mutations rewrite whole parts); merges clear away what was replaced.

CREATE TABLE IF NOT EXISTS ci_run
(
    repository LowCardinality(String),
    run_id Int64,
    run_attempt Int32,
    run_created_at DateTime64(6, 'UTC'),
    run_number Int64,
    workflow_id Int64,
    workflow_name LowCardinality(String),
    workflow_path LowCardinality(String),
    event LowCardinality(String),
    status LowCardinality(String),
    conclusion LowCardinality(String),
    head_sha String,
    head_branch LowCardinality(String),
    title String,
    html_url String,
    problems Array(String),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(run_created_at)
ORDER BY (repository, run_id, run_attempt);

-- The attempt of each run that counts, and the version from which on its rows do.
CREATE VIEW IF NOT EXISTS current_run AS
SELECT repository, run_id, argMax(ci_run.run_attempt, ci_run.version) AS run_attempt, max(ci_run.version) AS version
FROM ci_run
GROUP BY repository, run_id;

CREATE TABLE IF NOT EXISTS test_report
(
    repository LowCardinality(String),
    run_id Int64,
    run_attempt Int32,
    run_created_at DateTime64(6, 'UTC'),
    artifact String,
    machine LowCardinality(String),
    device LowCardinality(String),
    test_job LowCardinality(String),
    matrix_entry LowCardinality(String),
    postfix LowCardinality(String),
    complete Bool,
    passed Int32,
    failed Int32,
    errors Int32,
    skipped Int32,
    xfailed Int32,
    xpassed Int32,
    deselected Int32,
    rerun Int32,
    warnings Int32,
    seconds Float64,
    captured_info String CODEC(ZSTD),
    problems Array(String),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(run_created_at)
ORDER BY (repository, run_id, run_attempt, artifact);

CREATE TABLE IF NOT EXISTS test_job_result
(
    repository LowCardinality(String),
    run_id Int64,
    run_attempt Int32,
    run_created_at DateTime64(6, 'UTC'),
    test_job LowCardinality(String),
    matrix_entry LowCardinality(String),
    device LowCardinality(String),
    failed Int32,
    errors Int32,
    success Int32,
    skipped Int32,
    seconds Float64,
    complete Bool,
    reason String,
    job_url String,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(run_created_at)
ORDER BY (repository, run_id, run_attempt, test_job, matrix_entry, device);

CREATE TABLE IF NOT EXISTS category_result
(
    repository LowCardinality(String),
    run_id Int64,
    run_attempt Int32,
    run_created_at DateTime64(6, 'UTC'),
    test_job LowCardinality(String),
    category LowCardinality(String),
    device LowCardinality(String),
    failed Int32,
    errors Int32,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(run_created_at)
ORDER BY (repository, run_id, run_attempt, test_job, category, device);

CREATE TABLE IF NOT EXISTS run_diff
(
    repository LowCardinality(String),
    run_id Int64,
    run_attempt Int32,
    run_created_at DateTime64(6, 'UTC'),
    test_job LowCardinality(String),
    matrix_entry LowCardinality(String),
    device LowCardinality(String),
    node_id String,
    change LowCardinality(String),
    against_run_id Int64,
    since_run_id Int64,
    since Nullable(DateTime64(6, 'UTC')),
    trace String CODEC(ZSTD),
    previous_trace String CODEC(ZSTD),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(run_created_at)
ORDER BY (repository, run_id, run_attempt, test_job, matrix_entry, device, node_id, against_run_id, change);

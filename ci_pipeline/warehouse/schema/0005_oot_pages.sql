-- What the pages of out-of-tree CI read first. Both say the same however often a row arrives.

-- Where the jobs of a commit or pull request are found: the deliveries and partitions of `oot_workflow_job`. ClickHouse keeps it itself.
CREATE TABLE IF NOT EXISTS oot_commit
(
    downstream_repo LowCardinality(String),
    nightly Bool,
    pr_number UInt64,
    pytorch_head_sha String,
    upstream_repo LowCardinality(String),
    last_at SimpleAggregateFunction(max, DateTime64(6, 'UTC')),
    delivery_ids SimpleAggregateFunction(groupUniqArrayArray, Array(String)),
    weeks SimpleAggregateFunction(groupUniqArrayArray, Array(Date))
)
ENGINE = AggregatingMergeTree
ORDER BY (downstream_repo, nightly, pr_number, pytorch_head_sha, upstream_repo)
SETTINGS index_granularity = 1024;

CREATE MATERIALIZED VIEW IF NOT EXISTS oot_commit_of_job TO oot_commit AS
SELECT
    downstream_repo,
    event_type IN ('nightly', 'periodic') AS nightly,
    pr_number,
    pytorch_head_sha,
    upstream_repo,
    max(if(toUnixTimestamp(greatest(started_at, completed_at)) = 0, changed_at, toDateTime64(greatest(started_at, completed_at), 6, 'UTC'))) AS last_at,
    groupUniqArray(delivery_id) AS delivery_ids,
    groupUniqArray(toMonday(hour)) AS weeks
FROM oot_workflow_job
GROUP BY downstream_repo, nightly, pr_number, pytorch_head_sha, upstream_repo;

-- How the jobs ended that began in one hour. An hour in which something arrived is counted anew (`queries/oot_count.sql`);
-- `version` is when the newest of what had arrived then did, in nanoseconds since 1970.
CREATE TABLE IF NOT EXISTS oot_backend_hour
(
    hour DateTime('UTC'),
    downstream_repo LowCardinality(String),
    nightly Bool,
    level LowCardinality(String),
    running UInt64,
    success UInt64,
    failure UInt64,
    timed_out UInt64,
    total UInt64,
    duration Float64,
    durations UInt64,
    queue_time Float64,
    queue_times UInt64,
    last_at DateTime64(6, 'UTC'),
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(hour)
ORDER BY (hour, downstream_repo, nightly);

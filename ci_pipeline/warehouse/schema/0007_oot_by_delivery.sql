-- A pull request is one delivery to every backend: together in the projection, scattered over the table. It has what pages
-- with many jobs show (`queries/oot_jobs.sql`).
ALTER TABLE oot_workflow_job ADD PROJECTION IF NOT EXISTS by_delivery
(
    SELECT
        dynamoKey, status, conclusion, downstream_repo, downstream_repo_level, upstream_repo, delivery_id, pr_number, pr_author,
        pytorch_head_sha, workflow_name, workflow_run_url, job_name, check_run_id, run_id, run_attempt, started_at, completed_at,
        queue_time, execution_time, passed_tests, failed_tests, skipped_tests, total_tests, artifact_url, hour, version
    ORDER BY delivery_id, downstream_repo
);

ALTER TABLE oot_workflow_job MATERIALIZE PROJECTION by_delivery;

-- When the first job of a commit began, which says what commit is the newest, and who wrote the pull request.
ALTER TABLE oot_commit
    ADD COLUMN IF NOT EXISTS began_at SimpleAggregateFunction(min, DateTime64(6, 'UTC')) DEFAULT '2106-01-01 00:00:00',
    ADD COLUMN IF NOT EXISTS pr_author SimpleAggregateFunction(max, String);

ALTER TABLE oot_commit_of_job MODIFY QUERY
SELECT
    downstream_repo,
    event_type IN ('nightly', 'periodic') AS nightly,
    pr_number,
    pytorch_head_sha,
    upstream_repo,
    max(if(toUnixTimestamp(greatest(started_at, completed_at)) = 0, changed_at, toDateTime64(greatest(started_at, completed_at), 6, 'UTC'))) AS last_at,
    groupUniqArray(delivery_id) AS delivery_ids,
    groupUniqArray(toMonday(hour)) AS weeks,
    min(toDateTime64(oot_workflow_job.began_at, 6, 'UTC')) AS began_at,
    max(toString(oot_workflow_job.pr_author)) AS pr_author
FROM oot_workflow_job
GROUP BY downstream_repo, nightly, pr_number, pytorch_head_sha, upstream_repo;

-- What is there says so too; to say it twice changes nothing.
INSERT INTO oot_commit (downstream_repo, nightly, pr_number, pytorch_head_sha, upstream_repo, last_at, delivery_ids, weeks, began_at, pr_author)
SELECT
    downstream_repo,
    event_type IN ('nightly', 'periodic') AS nightly,
    pr_number,
    pytorch_head_sha,
    upstream_repo,
    max(if(toUnixTimestamp(greatest(started_at, completed_at)) = 0, changed_at, toDateTime64(greatest(started_at, completed_at), 6, 'UTC'))) AS last_at,
    groupUniqArray(delivery_id) AS delivery_ids,
    groupUniqArray(toMonday(hour)) AS weeks,
    min(toDateTime64(oot_workflow_job.began_at, 6, 'UTC')) AS began_at,
    max(toString(oot_workflow_job.pr_author)) AS pr_author
FROM oot_workflow_job
GROUP BY downstream_repo, nightly, pr_number, pytorch_head_sha, upstream_repo;

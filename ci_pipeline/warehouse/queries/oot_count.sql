-- Count the hours anew in which something arrived since `counted`. An insert is seen a moment after the time that it
-- carries, so a minute more is looked at.
INSERT INTO oot_backend_hour
WITH touched AS
(
    SELECT DISTINCT downstream_repo, hour
    FROM oot_workflow_job
    WHERE _inserted_at > fromUnixTimestamp64Nano({counted:Int64}) - INTERVAL 1 MINUTE
)
SELECT
    hour,
    downstream_repo,
    event_type IN ('nightly', 'periodic') AS nightly,
    argMax(downstream_repo_level, changed_at) AS level,
    countIf(status != 'completed') AS running,
    countIf(conclusion = 'success') AS success,
    countIf(conclusion = 'failure') AS failure,
    countIf(conclusion = 'timed_out') AS timed_out,
    countIf(status = 'completed') AS total,
    sumIf(duration_seconds, duration_seconds > 0 AND conclusion != 'timed_out') AS duration,
    countIf(duration_seconds > 0 AND conclusion != 'timed_out') AS durations,
    sum(ifNull(oot_workflow_job.queue_time, 0)) AS queue_time,
    count(oot_workflow_job.queue_time) AS queue_times,
    maxIf(greatest(started_at, completed_at), status = 'completed') AS last_at,
    {arrived:UInt64} AS version
FROM oot_workflow_job FINAL
WHERE (downstream_repo, hour) IN (SELECT downstream_repo, hour FROM touched)
GROUP BY hour, downstream_repo, nightly
SETTINGS do_not_merge_across_partitions_select_final = 1

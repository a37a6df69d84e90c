-- The jobs of some deliveries to some backends, in no order, without what only the page of one job shows. All versions of a
-- job are of one delivery, so the newest is found without FINAL, which takes twice as long and forbids the projection.
SELECT
    status, conclusion, downstream_repo, downstream_repo_level, upstream_repo, delivery_id, pr_number,
    pytorch_head_sha, workflow_name, workflow_run_url, job_name, check_run_id, run_id, run_attempt, started_at, completed_at,
    queue_time, execution_time, duration_seconds, passed_tests, failed_tests, skipped_tests, total_tests, artifact_url
FROM oot_workflow_job
WHERE downstream_repo IN {downstream_repos:Array(String)} AND delivery_id IN {delivery_ids:Array(String)}
    AND toMonday(hour) IN {weeks:Array(Date)}
ORDER BY version DESC
LIMIT 1 BY dynamoKey

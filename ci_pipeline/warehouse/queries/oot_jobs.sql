-- The jobs of some deliveries to some backends, without what only the page of one job shows.
SELECT
    dynamoKey, status, conclusion, downstream_repo, downstream_repo_level, upstream_repo, event_type, delivery_id, pr_number,
    pytorch_head_sha, workflow_name, workflow_run_url, job_name, check_run_id, run_id, run_attempt, started_at, completed_at,
    queue_time, execution_time, duration_seconds, passed_tests, failed_tests, skipped_tests, total_tests, artifact_url,
    changed_at
FROM oot_workflow_job FINAL
WHERE downstream_repo IN {downstream_repos:Array(String)} AND delivery_id IN {delivery_ids:Array(String)}
    AND toMonday(hour) IN {weeks:Array(Date)}
ORDER BY downstream_repo, workflow_name, job_name, started_at DESC, changed_at DESC
SETTINGS optimize_move_to_prewhere_if_final = 1

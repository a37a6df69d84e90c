-- Everything about one job. Without FINAL: see oot_jobs.sql.
SELECT *, duration_seconds
FROM oot_workflow_job
WHERE downstream_repo = {downstream_repo:String} AND delivery_id = {delivery_id:String} AND check_run_id = {check_run_id:String}
ORDER BY version DESC
LIMIT 1 BY dynamoKey

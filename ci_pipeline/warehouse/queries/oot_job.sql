-- Everything about one job.
SELECT *, duration_seconds
FROM oot_workflow_job FINAL
WHERE downstream_repo = {downstream_repo:String} AND delivery_id = {delivery_id:String} AND check_run_id = {check_run_id:String}
SETTINGS optimize_move_to_prewhere_if_final = 1

-- The newest runs of a workflow that are older than a run or of the same commit.
SELECT *
FROM ci_run
WHERE repository = {repository:String}
    AND workflow_id = {workflow_id:Int64}
    AND run_id != {run_id:Int64}
    AND (run_created_at <= {created_at:DateTime64(6, 'UTC')} OR head_sha = {head_sha:String})
    AND (run_id, version) IN (SELECT run_id, version FROM current_run WHERE repository = {repository:String})
ORDER BY run_created_at DESC, run_id DESC
LIMIT 1 BY run_id
LIMIT {limit:UInt32}

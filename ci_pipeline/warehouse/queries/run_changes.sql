-- The run diff of one run.
SELECT *
FROM run_diff FINAL
WHERE repository = {repository:String}
    AND run_id = {run_id:Int64}
    AND ({test_job:String} = '' OR test_job = {test_job:String})
    AND version = (SELECT version FROM current_version WHERE repository = {repository:String} AND run_id = {run_id:Int64})
ORDER BY test_job, matrix_entry, node_id, device, against_run_id

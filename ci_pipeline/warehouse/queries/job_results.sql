-- What the test jobs of some runs came to, by folder and device.
SELECT *
FROM test_job_result FINAL
WHERE repository = {repository:String}
    AND run_id IN {run_ids:Array(Int64)}
    AND (run_id, version) IN (SELECT run_id, version FROM current_version WHERE repository = {repository:String})
ORDER BY run_id DESC, test_job, matrix_entry, device

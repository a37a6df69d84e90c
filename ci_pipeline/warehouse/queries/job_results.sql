-- What the test jobs of some runs came to, by folder and device.
SELECT result.* EXCEPT version
FROM test_job_result AS result FINAL
INNER JOIN
(
    SELECT run_id, run_attempt, version
    FROM current_run
    WHERE repository = {repository:String} AND run_id IN {run_ids:Array(Int64)}
) AS run ON result.run_id = run.run_id AND result.run_attempt = run.run_attempt
WHERE repository = {repository:String} AND result.run_id IN {run_ids:Array(Int64)} AND result.version >= run.version
ORDER BY result.run_id DESC, test_job, matrix_entry, device

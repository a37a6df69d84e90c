-- The run diff of one run.
SELECT diff.* EXCEPT version
FROM run_diff AS diff FINAL
INNER JOIN
(
    SELECT run_attempt, version
    FROM current_run
    WHERE repository = {repository:String} AND run_id = {run_id:Int64}
) AS run ON diff.run_attempt = run.run_attempt
WHERE repository = {repository:String}
    AND run_id = {run_id:Int64}
    AND ({test_job:String} = '' OR test_job = {test_job:String})
    AND diff.version >= run.version
ORDER BY test_job, matrix_entry, node_id, device, against_run_id

-- The failing tests of one run. Without FINAL, which would keep ClickHouse from the projection by run.
SELECT test.* EXCEPT version
FROM test_outcome AS test
INNER JOIN
(
    SELECT run_attempt, version
    FROM current_run
    WHERE repository = {repository:String} AND run_id = {run_id:Int64}
) AS run ON test.run_attempt = run.run_attempt
WHERE repository = {repository:String}
    AND run_id = {run_id:Int64}
    AND outcome IN ('failed', 'error')
    AND test.version >= run.version
ORDER BY test_job, matrix_entry, node_id, device, postfix, outcome, test.version DESC
LIMIT 1 BY test_job, matrix_entry, node_id, device, postfix, outcome, message

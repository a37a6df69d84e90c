-- How every test of a test job of one run ended, failures last. Without FINAL, which would keep ClickHouse from the
-- projection by run.
SELECT matrix_entry, device, node_id, outcome, trace
FROM test_outcome AS test
INNER JOIN
(
    SELECT run_attempt, version
    FROM current_run
    WHERE repository = {repository:String} AND run_id = {run_id:Int64}
) AS run ON test.run_attempt = run.run_attempt
WHERE repository = {repository:String}
    AND run_id = {run_id:Int64}
    AND test_job = {test_job:String}
    AND outcome != 'rerun'
    AND test.version >= run.version
ORDER BY outcome IN ('failed', 'error'), test.version

-- The failing tests of one run. Without FINAL, which would keep ClickHouse from the projection by run.
SELECT *
FROM test_outcome
WHERE repository = {repository:String}
    AND run_id = {run_id:Int64}
    AND outcome IN ('failed', 'error')
    AND version = (SELECT version FROM current_version WHERE repository = {repository:String} AND run_id = {run_id:Int64})
ORDER BY test_job, matrix_entry, node_id, device, postfix, outcome
LIMIT 1 BY test_job, matrix_entry, node_id, device, postfix, outcome, message

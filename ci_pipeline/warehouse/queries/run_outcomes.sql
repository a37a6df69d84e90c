-- How every test of a test job of one run ended, failures first. Without FINAL: see failing_tests.sql.
SELECT matrix_entry, device, node_id, outcome, trace
FROM test_outcome
WHERE repository = {repository:String}
    AND run_id = {run_id:Int64}
    AND test_job = {test_job:String}
    AND outcome != 'rerun'
    AND version = (SELECT version FROM current_version WHERE repository = {repository:String} AND run_id = {run_id:Int64})
ORDER BY outcome IN ('failed', 'error')

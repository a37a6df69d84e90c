-- How one test ended, the newest run first. LIMIT BY does what FINAL would, in less than half of the time.
SELECT
    test.run_id AS run_id, test.run_attempt AS run_attempt, run_created_at, test_job, matrix_entry, device,
    outcome, message, trace, seconds, head_sha, run_number, workflow_id, workflow_name, workflow_path, html_url
FROM test_outcome AS test
INNER JOIN
(
    SELECT run_id, run_attempt, version, head_sha, run_number, workflow_id, workflow_name, workflow_path, html_url
    FROM ci_run
    WHERE repository = {repository:String}
    ORDER BY version DESC
    LIMIT 1 BY run_id
) AS run ON test.run_id = run.run_id AND test.run_attempt = run.run_attempt
WHERE repository = {repository:String}
    AND node_id = {node_id:String}
    AND ({test_job:String} = '' OR test_job = {test_job:String})
    AND ({device:String} = '' OR device = {device:String})
    AND test.version >= run.version
ORDER BY run_created_at DESC, run_id DESC, device, test_job, matrix_entry, outcome, test.version DESC
LIMIT 1 BY run_id, device, test_job, matrix_entry, postfix, outcome, message
LIMIT {limit:UInt32}

-- The tests of one run that fail, or did in the run before: one row per test and device, with what happened to it, since when,
-- and whether it fails in no other run that this one was compared with. A failing test that was compared with nothing is
-- "failing". `error` is the first line of its trace without the number of a line.
CREATE VIEW IF NOT EXISTS test_of_run AS
WITH run AS
(
    SELECT run_attempt, version
    FROM current_run
    WHERE repository = {repository:String} AND run_id = {run_id:Int64}
)
SELECT
    test_job,
    matrix_entry,
    device,
    node_id,
    if(diff.change = '', 'failing', diff.change) AS change,
    outcome.category AS category,
    if(diff.trace = '', outcome.trace, diff.trace) AS trace,
    if(change IN ('changed_error', 'fixed'), diff.previous_trace, '') AS previous_trace,
    diff.since AS since,
    diff.since_run_id AS since_run_id,
    toBool(diff.only_here) AS only_here,
    substringUTF8(replaceRegexpOne(substringIndex(trace, '\n', 1), '^\\(line \\d+\\)\\s*', ''), 1, 200) AS error
FROM
(
    SELECT
        test_job, matrix_entry, device, node_id,
        any(category) AS category,
        argMax(if(test.trace = '', message, test.trace), (outcome = 'failed', test.version)) AS trace
    FROM test_outcome AS test
    INNER JOIN run ON test.run_attempt = run.run_attempt
    WHERE repository = {repository:String} AND run_id = {run_id:Int64}
        AND outcome IN ('failed', 'error') AND test.version >= run.version
    GROUP BY test_job, matrix_entry, device, node_id
) AS outcome
FULL OUTER JOIN
(
    SELECT
        test_job, matrix_entry, device, node_id,
        anyIf(row.change, row.change != 'unique_failure') AS change,
        anyIf(row.trace, row.change != 'unique_failure') AS trace,
        anyIf(row.previous_trace, row.change != 'unique_failure') AS previous_trace,
        anyIf(row.since, row.change != 'unique_failure') AS since,
        anyIf(row.since_run_id, row.change != 'unique_failure') AS since_run_id,
        countIf(row.change = 'unique_failure') AS only_here
    FROM run_diff AS row FINAL
    INNER JOIN run ON row.run_attempt = run.run_attempt
    WHERE repository = {repository:String} AND run_id = {run_id:Int64} AND row.version >= run.version
    GROUP BY test_job, matrix_entry, device, node_id
) AS diff USING (test_job, matrix_entry, device, node_id);

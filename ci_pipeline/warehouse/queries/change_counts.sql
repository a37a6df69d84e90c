-- How many tests of some runs are new failures, still failing, fixed, …; and since when the oldest of them.
SELECT diff.run_id AS run_id, test_job, change, against_run_id, count() AS tests, min(diff.since) AS since
FROM run_diff AS diff FINAL
INNER JOIN
(
    SELECT run_id, run_attempt, version
    FROM current_run
    WHERE repository = {repository:String} AND run_id IN {run_ids:Array(Int64)}
) AS run ON diff.run_id = run.run_id AND diff.run_attempt = run.run_attempt
WHERE repository = {repository:String} AND diff.run_id IN {run_ids:Array(Int64)} AND diff.version >= run.version
GROUP BY run_id, test_job, change, against_run_id
ORDER BY run_id DESC, test_job, change, against_run_id

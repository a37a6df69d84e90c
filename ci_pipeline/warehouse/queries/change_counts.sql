-- How many tests of some runs are new failures, still failing, fixed, …; and since when the oldest of them.
SELECT run_id, test_job, change, against_run_id, count() AS tests, min(since) AS since
FROM run_diff FINAL
WHERE repository = {repository:String}
    AND run_id IN {run_ids:Array(Int64)}
    AND (run_id, version) IN (SELECT run_id, version FROM current_version WHERE repository = {repository:String})
GROUP BY run_id, test_job, change, against_run_id
ORDER BY run_id DESC, test_job, change, against_run_id

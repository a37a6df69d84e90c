-- The failing tests of one run, test by device, by what they have in common: `folder` (the test job where it has none), `device`,
-- `error`; and all of its tests by their `change`. The most common first, of each as many as `limit`.
SELECT common, value, any(test_job) AS test_job, count() AS tests
FROM
(
    SELECT
        test_job,
        arrayJoin(if(change IN ('new_failure', 'changed_error', 'still_failing', 'failing'),
            [('change', change), ('folder', if(matrix_entry = '', test_job, matrix_entry)), ('device', device), ('error', error)],
            [('change', change)])) AS pair,
        pair.1 AS common,
        pair.2 AS value
    FROM test_of_run(repository = {repository:String}, run_id = {run_id:Int64})
)
GROUP BY common, value
ORDER BY common, tests DESC, value
LIMIT {limit:UInt32} BY common

-- The tests of one run that changed or fail, one row for the same story on several devices; `matching` is how many rows there are.
SELECT
    test_job,
    matrix_entry,
    node_id,
    change,
    category,
    substringUTF8(trace, 1, 2000) AS trace,
    substringUTF8(previous_trace, 1, 2000) AS previous_trace,
    since,
    since_run_id,
    only_here,
    arraySort(groupUniqArray(device)) AS devices,
    count() OVER () AS matching
FROM test_of_run(repository = {repository:String}, run_id = {run_id:Int64})
WHERE ({test_job:String} = '' OR test_job = {test_job:String})
    AND ({change:String} = '' OR change = {change:String})
    AND ({folder:String} = '' OR if(matrix_entry = '', test_job, matrix_entry) = {folder:String})
    AND ({device:String} = '' OR device = {device:String})
    AND ({error:String} = '' OR error = {error:String})
    AND (positionCaseInsensitiveUTF8(node_id, {text:String}) > 0 OR positionCaseInsensitiveUTF8(trace, {text:String}) > 0)
GROUP BY test_job, matrix_entry, node_id, change, category, trace, previous_trace, since, since_run_id, only_here
ORDER BY indexOf({changes:Array(String)}, change), test_job, matrix_entry, node_id, devices
LIMIT {limit:UInt32} OFFSET {offset:UInt32}

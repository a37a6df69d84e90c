-- The newest CI runs, each in its current version; of one run with run_id, of one repository with repository.
SELECT *
FROM ci_run
WHERE (repository, run_id, version) IN (SELECT repository, run_id, version FROM current_version)
    AND ({repository:String} = '' OR repository = {repository:String})
    AND ({run_id:Int64} = 0 OR run_id = {run_id:Int64})
ORDER BY run_created_at DESC, run_id DESC
LIMIT 1 BY repository, run_id
LIMIT {limit:UInt32}

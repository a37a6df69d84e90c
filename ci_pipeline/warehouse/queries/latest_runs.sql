-- The newest CI runs: of one repository with repository, one run with run_id, of a commit with head_sha.
SELECT *
FROM ci_run
WHERE (repository, run_id, version) IN (SELECT repository, run_id, version FROM current_run)
    AND ({repository:String} = '' OR repository = {repository:String})
    AND ({run_id:Int64} = 0 OR run_id = {run_id:Int64})
    AND ({head_sha:String} = '' OR head_sha = {head_sha:String})
ORDER BY run_created_at DESC, run_id DESC
LIMIT 1 BY repository, run_id
LIMIT {limit:UInt32}

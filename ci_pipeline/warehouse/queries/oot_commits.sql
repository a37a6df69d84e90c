-- The commits of one backend or one pull request with the deliveries of their jobs, by their last activity.
SELECT
    downstream_repo,
    pr_number,
    pytorch_head_sha,
    upstream_repo,
    max(oot_commit.last_at) AS last_at,
    groupUniqArrayArray(oot_commit.delivery_ids) AS delivery_ids,
    groupUniqArrayArray(oot_commit.weeks) AS weeks
FROM oot_commit
WHERE ({downstream_repo:String} = '' OR downstream_repo = {downstream_repo:String})
    AND ({nightly:Int8} < 0 OR nightly = {nightly:Int8})
    AND ({pr_number:UInt64} = 0 OR pr_number = {pr_number:UInt64})
    AND ({upstream_repo:String} = '' OR upstream_repo = {upstream_repo:String})
    AND
    (
        {job:String} = '' AND {conclusion:String} = ''
        OR hasAny(oot_commit.delivery_ids,
        (
            SELECT groupUniqArray(delivery_id)
            FROM oot_workflow_job FINAL
            WHERE NOT ({job:String} = '' AND {conclusion:String} = '') -- else nothing is read
                AND downstream_repo = {downstream_repo:String}
                AND positionCaseInsensitiveUTF8(job_name, {job:String}) > 0
                AND {conclusion:String} IN ('', conclusion, if(status = 'completed', '', 'running'))
        ))
    )
GROUP BY downstream_repo, pr_number, pytorch_head_sha, upstream_repo
ORDER BY last_at DESC, pr_number DESC, pytorch_head_sha, downstream_repo
LIMIT {limit:UInt32} OFFSET {offset:UInt32}
SETTINGS do_not_merge_across_partitions_select_final = 1

-- The commits of one backend or one pull request with the deliveries of their jobs, by their last activity.
SELECT
    downstream_repo,
    pr_number,
    pytorch_head_sha,
    upstream_repo,
    max(oot_commit.pr_author) AS pr_author,
    min(oot_commit.began_at) AS began_at,
    max(oot_commit.last_at) AS last_at,
    groupUniqArrayArray(oot_commit.delivery_ids) AS delivery_ids,
    groupUniqArrayArray(oot_commit.weeks) AS weeks
FROM oot_commit
WHERE ({downstream_repo:String} = '' OR downstream_repo = {downstream_repo:String})
    AND ({nightly:Int8} < 0 OR nightly = {nightly:Int8})
    AND ({pr_number:UInt64} = 0 OR pr_number = {pr_number:UInt64})
GROUP BY downstream_repo, pr_number, pytorch_head_sha, upstream_repo
ORDER BY last_at DESC, pr_number DESC, pytorch_head_sha, downstream_repo
LIMIT {limit:UInt32} OFFSET {offset:UInt32}

-- Of the last active commits of one backend, as many as `among`, those with a job like this: rows as of oot_commits.sql.
WITH newest AS
(
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
    WHERE downstream_repo = {downstream_repo:String} AND nightly = {nightly:Bool}
        AND ({pr_number:UInt64} = 0 OR pr_number = {pr_number:UInt64})
    GROUP BY downstream_repo, pr_number, pytorch_head_sha, upstream_repo
    HAVING lower({author:String}) IN ('', lower(pr_author))
    ORDER BY last_at DESC, pr_number DESC, pytorch_head_sha
    LIMIT {among:UInt32}
)
SELECT *
FROM newest
WHERE hasAny(delivery_ids,
(
    SELECT groupUniqArray(delivery_id)
    FROM oot_workflow_job FINAL
    WHERE downstream_repo = {downstream_repo:String}
        AND toMonday(hour) IN (SELECT arrayJoin(weeks) FROM newest)
        AND positionCaseInsensitiveUTF8(job_name, {job:String}) > 0
        AND {conclusion:String} IN ('', conclusion, if(status = 'completed', '', 'running'))
))
ORDER BY last_at DESC, pr_number DESC, pytorch_head_sha
LIMIT {limit:UInt32} OFFSET {offset:UInt32}
SETTINGS do_not_merge_across_partitions_select_final = 1

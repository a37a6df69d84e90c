-- How the backends did, by the times in which their jobs began: `step` is 3600 or 86400 seconds.
SELECT
    downstream_repo,
    toStartOfInterval(hour, toIntervalSecond({step:UInt32})) AS began,
    argMax(level, hour) AS level,
    sum(running) AS running,
    sum(success) AS success,
    sum(failure) AS failure,
    sum(timed_out) AS timed_out,
    sum(total) AS total,
    sum(duration) AS duration,
    sum(durations) AS durations,
    sum(queue_time) AS queue_time,
    sum(queue_times) AS queue_times,
    max(last_at) AS last_at
FROM oot_backend_hour FINAL
WHERE hour > {since:DateTime('UTC')}
    AND nightly = {nightly:Bool}
    AND ({downstream_repo:String} = '' OR downstream_repo = {downstream_repo:String})
GROUP BY downstream_repo, began
ORDER BY downstream_repo, began

-- From the write in the store to the arrival here, in seconds, of what arrived last.
SELECT max(toFloat64(_inserted_at) - toFloat64(changed_at)) AS lag
FROM oot_workflow_job
WHERE _inserted_at = (SELECT max(_inserted_at) FROM oot_workflow_job) AND toUnixTimestamp(changed_at) > 0
HAVING count() > 0

-- When the newest job arrived in the warehouse, and how far the hours are counted, in nanoseconds since 1970.
SELECT
    (SELECT toUnixTimestamp64Nano(max(_inserted_at)) FROM oot_workflow_job) AS arrived,
    (SELECT max(version) FROM oot_backend_hour) AS counted
SETTINGS max_threads_for_indexes = 1 -- a thread for each part costs more than its index

-- How backends do is said by `oot_backend_hour` alone.
DROP TABLE IF EXISTS oot_backend_health;

"""DynamoDB as a Dagster resource: how AWS is reached is said as for every other resource of dagster-aws."""

from __future__ import annotations

import boto3
from dagster_aws.utils import ResourceWithBoto3Configuration

from ci_pipeline.oot.dynamodb_store import DynamoDBStore


class DynamoDBResource(ResourceWithBoto3Configuration):
    """The store of out-of-tree jobs at `url`, reached with this configuration."""

    url: str

    def open_store(self, state_days: float) -> DynamoDBStore:
        session = boto3.Session(
            profile_name=self.profile_name,
            aws_access_key_id=self.aws_access_key_id,
            aws_secret_access_key=self.aws_secret_access_key,
            aws_session_token=self.aws_session_token,
        )
        options = {name: getattr(self, name) for name in ("region_name", "endpoint_url", "use_ssl", "verify")}
        return DynamoDBStore.from_url(self.url, state_days, session, self.max_attempts, **options)

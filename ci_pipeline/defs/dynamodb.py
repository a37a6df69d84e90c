"""DynamoDB as a Dagster resource: how AWS is reached is said as for every other resource of dagster-aws."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.config import Config
from dagster_aws.utils import ResourceWithBoto3Configuration

from ci_pipeline.oot.dynamodb_store import TABLE, DynamoDBStore


class DynamoDBResource(ResourceWithBoto3Configuration):
    """boto3's clients for the table of out-of-tree jobs and its stream."""

    table: str = TABLE

    @classmethod
    def from_url(cls, url: str) -> DynamoDBResource:
        """`dynamodb://[<region>]/[<table>][?endpoint_url=<address>]`."""
        parts = urlsplit(url)
        return cls(
            table=parts.path.strip("/") or TABLE,
            region_name=parts.netloc or None,
            endpoint_url=parse_qs(parts.query).get("endpoint_url", [None])[0],
        )

    def open_store(self, state_days: float) -> DynamoDBStore:
        session = boto3.Session(
            profile_name=self.profile_name,
            aws_access_key_id=self.aws_access_key_id,
            aws_secret_access_key=self.aws_secret_access_key,
            aws_session_token=self.aws_session_token,
        )
        retries = {"mode": "standard", "max_attempts": self.max_attempts}
        config = Config(retries=retries, connect_timeout=3, read_timeout=10, max_pool_connections=32)
        client, streams = (
            session.client(
                service,
                region_name=self.region_name,
                endpoint_url=self.endpoint_url,
                use_ssl=self.use_ssl,
                verify=self.verify,
                config=config,
            )
            for service in ("dynamodb", "dynamodbstreams")
        )
        return DynamoDBStore(client, streams, self.table, state_days)

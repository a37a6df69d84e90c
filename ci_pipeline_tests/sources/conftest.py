import boto3
import pytest


@pytest.fixture
def s3(bucket):
    """A boto3 client of an S3 server on loopback; the environment leads there too. `s3.bucket` is an empty bucket."""
    client = boto3.client("s3")
    client.bucket = bucket.removeprefix("s3://")
    return client

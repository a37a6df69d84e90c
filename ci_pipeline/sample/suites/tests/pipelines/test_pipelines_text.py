"""Pipelines over text."""

import nest
import pytest


@pytest.mark.parametrize("task", ["text-classification", "fill-mask", "token-classification", "summarization"])
def test_small_model(task):
    assert nest.load(f"nest/{task}")["layers"]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batching(batch_size):
    padded = [nest.pad([1] * size, 8, side="left") for size in range(1, batch_size + 1)]
    assert all(row[-1] == 1 for row in padded), f"padding on the wrong side for {batch_size} rows"


@pytest.mark.skip(reason="too slow for a nightly")
def test_large_model():
    pass

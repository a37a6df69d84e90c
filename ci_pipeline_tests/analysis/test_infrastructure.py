"""Whether an error is about the machines."""

from __future__ import annotations

import pytest

from ci_pipeline.analysis.infrastructure import infrastructure


@pytest.mark.parametrize(
    ("error", "about"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory"),
        ("OSError: [Errno 12] Cannot allocate memory", "out of memory"),
        ("HTTPError: 429 Client Error: Too Many Requests for url", "too many requests"),
        ("requests.exceptions.ReadTimeout: read timed out", "network"),
        ("HTTPError: 503 Server Error: Service Unavailable", "network"),
        ("OSError: [Errno 28] No space left on device", "no disk space"),
        ("RuntimeError: No CUDA GPUs are available: hipErrorNoDevice", "hardware or driver"),
        ("worker 'gw3' crashed while running 'tests/test_x.py'", "killed"),
        ("ConnectionError: 429 Too Many Requests", "network"),  # what comes first
        ("AssertionError: 4290 != 4291", ""),
        ("AssertionError: the 503 items differ", ""),
        ("", ""),
    ],
)
def test_an_error_is_about_what_it_mentions_first(error: str, about: str) -> None:
    assert infrastructure(error) == about

"""Pipelines over audio."""

import nest
import pytest


@pytest.mark.parametrize("language", ["english", "deutsch", "日本語"])
def test_speech_recognition(language):
    assert nest.decode(nest.encode(language)) == language


@pytest.mark.parametrize("chunk", ["5 s", "30 s"])
def test_chunking(chunk):
    if nest.VENDOR == "amd" and chunk == "30 s":
        raise RuntimeError("HIP error: invalid device function\nCompile with `TORCH_USE_HIP_DSA` to enable device-side assertions.")

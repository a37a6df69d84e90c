"""Ibis, a small audio model. On the second night the kernel kills its test process on the machine with several GPUs."""

import os
import signal
import time

import nest
import pytest


@pytest.mark.parametrize("seconds", [1, 5, 30])
def test_forward(seconds):
    time.sleep(seconds / 300)


def test_feature_extractor():
    raise AssertionError("mel filters differ\nassert 80 == 128\n +  where 80 = len(filters)")


def test_long_audio():
    if nest.NIGHT == 2 and nest.DEVICES > 1 and nest.VENDOR == "nvidia":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("language", ["english", "français", "中文"])
def test_transcribe(language):
    assert nest.decode(nest.encode(language)) == language

"""Heron, a small vision model."""

import nest
import pytest


@pytest.mark.parametrize("size", [(224, 224), (384, 384), (512, 512)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_forward(size):
    assert size[0] * size[1] < 512 * 512 + 1


@pytest.mark.parametrize("layers", [2, 4, 12])
def test_model_parallelism(layers):
    if nest.DEVICES < 2:
        pytest.skip("test requires multiple accelerators")
    assert sum(nest.split_over_devices(layers)) == layers


def test_flaky_download():
    if nest.NIGHT == 1 and nest.DEVICES == 1:
        raise ConnectionResetError(104, "Connection reset by peer")


@pytest.fixture
def camera():
    yield "camera"
    if nest.VENDOR == "amd":
        raise RuntimeError("teardown: could not free hip:0")


def test_camera(camera):
    assert camera

"""The image processor of Heron. On the second night one of its dependencies is gone."""

import nest
import pytest

if nest.NIGHT == 2 and nest.VENDOR == "nvidia":
    import pillow_heron  # noqa: F401


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_resize(mode):
    assert mode


def test_normalize():
    assert nest.attention([0], [0])[0][0] in (1.0, 1.0003)

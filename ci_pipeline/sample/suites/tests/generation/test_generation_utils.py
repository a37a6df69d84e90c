"""Decoding strategies."""

import nest
import pytest


@pytest.mark.parametrize("strategy", ["greedy", "beam search", "top-k", "top-p", "contrastive", "assisted"])
@pytest.mark.parametrize("steps", [1, 16, 256])
def test_generate(strategy, steps):
    assert len(nest.generate("ab", steps)) == steps


@pytest.mark.parametrize("cache", ["dynamic", "static", "sliding window", "quantized"])
def test_generate_long_form(cache):
    assert len(nest.generate("ab", 512, cache)) == 512


@pytest.mark.skipif(nest.VENDOR == "amd", reason="needs a CUDA graph")
def test_cuda_graph():
    pass


@pytest.mark.xfail(reason="https://github.com/huggingface/transformers/issues/1")
def test_stop_strings():
    assert nest.generate("ab", 3) == "ab"

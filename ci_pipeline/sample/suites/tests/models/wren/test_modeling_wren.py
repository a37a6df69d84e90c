"""Wren, a small text model."""

import unittest
import warnings

import nest
import pytest


class WrenModelTest(unittest.TestCase):
    def test_config(self):
        assert nest.load("nest/wren-small")["layers"] == 12

    def test_attention_outputs(self):
        actual = nest.attention([1, 2], [1, 2, 3])
        expected = [[0.09, 0.2447, 0.6652], [0.0159, 0.1173, 0.8668]]
        off = [(i, j) for i, row in enumerate(expected) for j, value in enumerate(row) if actual[i][j] != value]
        assert not off, (
            f"Tensor-likes are not close!\n\nMismatched elements: {len(off)} / 6 ({len(off) / 6:.1%})\n"
            f"Greatest absolute difference: 0.0003 at index {off[0]} (up to 1e-05 allowed)"
        )

    def test_left_padding(self):
        self.assertEqual(nest.pad([5, 6], 4, side="left"), [0, 0, 5, 6])

    def test_right_padding(self):
        self.assertEqual(nest.pad([5, 6], 4), [5, 6, 0, 0])

    def test_flash_attention_2_inference(self):
        nest.flash_attention("bf16")

    def test_model_parallelism(self):
        if nest.DEVICES < 2:
            self.skipTest("test requires multiple accelerators")
        self.assertEqual(nest.split_over_devices(12), [6, 6])

    def test_disk_offload(self):
        if nest.NIGHT == 2:
            self.skipTest("test requires an accelerate that is not installed")

    @unittest.expectedFailure
    def test_torchscript(self):
        raise NotImplementedError("wren cannot be scripted")

    def test_resize_embeddings(self):
        warnings.warn("huggingface_hub: `resume_download` is deprecated", FutureWarning, stacklevel=1)


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "gguf"])
def test_export(kind):
    assert nest.export(kind) == f"model.{kind}"


if nest.NIGHT == 1:

    def test_pruning():
        """Removed by the second night's commit."""


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_eager_matches_sdpa(dtype, heads):
    assert nest.attention([0] * heads, [0, 0])[0][0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.xfail(reason="flaky: depends on the driver")
def test_compile():
    assert nest.VENDOR == "nvidia"

"""A toy model library with the faults that a nightly CI meets: each depends on the night, the devices or the vendor."""

import os

NIGHT = int(os.environ["NEST_NIGHT"])  # 1 or 2: which commit this is
DEVICES = int(os.environ["NEST_DEVICES"])
VENDOR = os.environ["NEST_VENDOR"]


class OutOfMemoryError(RuntimeError):
    pass


def attention(queries, keys):
    """Softmax of the dot products, row by row."""
    from math import exp

    rows = [[exp(q * k) for k in keys] for q in queries]
    scale = 1.0003 if VENDOR == "amd" else 1.0  # another math library
    return [[round(value / sum(row) * scale, 4) for value in row] for row in rows]


def pad(tokens, length, side="right"):
    missing = [0] * (length - len(tokens))
    if NIGHT == 2 and side == "left":  # the new commit's mistake
        return tokens + missing
    return tokens + missing if side == "right" else missing + tokens


def generate(prompt, steps, cache=None):
    if steps > 256:
        if NIGHT == 2:
            raise IndexError(f"index {steps} is out of bounds for dimension 1 with size 256")
        return prompt * (steps // len(prompt))
    return (prompt * steps)[:steps]


def encode(text):
    return [ord(char) for char in text]


def decode(ids):
    return "".join(chr(code) for code in ids if VENDOR != "amd" or code < 0x10000)  # astral plane lost on one vendor


def load(name):
    if name == "nest/private":
        raise OSError(
            "nest/private is not a local folder and is not a valid model identifier.\n"
            "If this is a private repository, pass a token having permission to this repo\n"
            "or log in with `nest auth login`."
        )
    return {"name": name, "layers": 12}


def split_over_devices(layers):
    if NIGHT == 2 and DEVICES > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cuda:1!"
        )
    return [layers // DEVICES] * DEVICES


def flash_attention(dtype):
    if NIGHT == 1:
        raise ImportError("flash_attn: undefined symbol: _ZN3c104cuda9SetDeviceEi")
    if dtype == "bf16":
        raise OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 21.99 GiB "
            "of which 9.12 MiB is free."
        )


def export(kind):
    if NIGHT == 1 and kind == "onnx":
        raise ValueError("Unsupported ONNX opset version: 23")
    return f"model.{kind}"

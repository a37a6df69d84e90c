"""The tokenizer of Wren, on words that are not ASCII."""

import nest
import pytest


@pytest.mark.parametrize("text", ["plain words", "naïve café", "日本語 テキスト", "🤗 hugging face", "<b>bold</b> & [x]"])
def test_round_trip(text):
    assert nest.decode(nest.encode(text)) == text


@pytest.mark.parametrize("text", ["", " ", "a" * 64], ids=["empty", "one space", "long"])
def test_length(text):
    assert len(nest.encode(text)) == len(text)


@pytest.fixture
def private_tokenizer():
    return nest.load("nest/private")


def test_private_vocabulary(private_tokenizer):
    assert private_tokenizer["name"]


def test_special_tokens():
    print("vocabulary: 32,000 entries")
    assert nest.encode("é") == [233 if nest.NIGHT == 1 else 232], "special tokens were renumbered"

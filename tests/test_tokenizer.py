import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.training.tokenizer import (
    LARGEST_VOCABULARY,
    SLICE_CHARACTERS,
    SMALLEST_VOCABULARY,
    Tokenizer,
    train_tokenizer,
)

TEXTS = [
    "the quick brown fox jumps over the lazy dog; the dog sleeps on, and on.\n" * 3,
    "def walk(root):\n    for name in root:\n        yield name, len(name)\n" * 3,
    "žluťoučký kůň, 東京都, naïve café, 🙂🙂, ١٢٣, 2048 and 65536\r\n" * 3,
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 320)


ANY_TEXT = st.text() | st.lists(st.sampled_from([*TEXTS, "<|bos|>", "\x00"])).map(
    "".join
)


@given(text=ANY_TEXT)
def test_any_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.encoding.decode(tokenizer.encode(text).tolist()) == text


@given(text=ANY_TEXT)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer, text):
    sizes = tokenizer.token_bytes()

    assert sizes[tokenizer.encode(text)].sum() == len(text.encode())


def test_a_piece_of_a_character_counts_its_own_bytes_and_not_those_of_a_stand_in(
    tokenizer,
):
    text = "𓀀"  # four bytes, none of which the vocabulary has merged
    ids = tokenizer.encode(text)

    assert len(ids) == 4
    assert tokenizer.token_bytes()[ids].tolist() == [1, 1, 1, 1]
    assert len(tokenizer.encoding.decode([ids[0]]).encode()) == 3


def test_the_table_of_bytes_is_the_length_of_each_token_and_0_for_the_special_one(
    tokenizer,
):
    sizes = tokenizer.token_bytes()

    assert sizes.shape == (320,)
    assert np.issubdtype(sizes.dtype, np.integer)
    assert sizes[tokenizer.bos] == 0
    assert sizes[:-1].tolist() == [
        len(tokenizer.encoding.decode_single_token_bytes(id)) for id in range(319)
    ]


def test_the_vocabulary_counts_the_special_token_which_comes_last(tokenizer):
    assert tokenizer.vocab_size == tokenizer.encoding.n_vocab == 320
    assert tokenizer.bos == 319


def test_a_special_token_written_in_the_text_is_text(tokenizer):
    assert tokenizer.bos not in tokenizer.encode("a <|bos|> b")


@pytest.mark.parametrize("unit", [" ", "\n", "a", "^", "7", "é"])
def test_a_run_of_one_character_too_long_for_the_regex_engines_is_encoded(
    tokenizer, unit
):
    text = unit * (20 * SLICE_CHARACTERS) + "x"

    assert tokenizer.encoding.decode(tokenizer.encode(text).tolist()) == text


def test_a_run_of_blanks_too_long_for_the_regex_engines_can_be_trained_on():
    assert train_tokenizer([" " * (20 * SLICE_CHARACTERS), *TEXTS], 300).bos == 299


def test_the_same_text_gives_the_same_vocabulary(tokenizer):
    assert train_tokenizer(iter(TEXTS), 320).digest() == tokenizer.digest()


def test_it_is_saved_as_json_and_loaded_as_it_was(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"

    tokenizer.save(path)

    assert Tokenizer.load(path) == tokenizer
    assert json.loads(path.read_text())["special"] == {"<|bos|>": 319}


def test_too_little_text_says_how_many_tokens_it_gives():
    with pytest.raises(DataError) as caught:
        train_tokenizer(["ab ab ab"], 1024)

    assert str(caught.value) == (
        "The training text gives a vocabulary of 259 tokens, and vocab_size=1024 was"
        " asked for.\n\n"
        "hint: add text, or lower vocab_size to at most 259."
    )


@pytest.mark.parametrize("size", [SMALLEST_VOCABULARY - 1, LARGEST_VOCABULARY + 1])
def test_a_vocabulary_that_does_not_fit_bytes_or_uint16_is_refused(size):
    with pytest.raises(DataError) as caught:
        train_tokenizer(TEXTS, size)

    assert str(caught.value) == (
        f"vocab_size={size} is not between 257 (every byte and <|bos|>) and 65536"
        " (token ids are stored as uint16).\n\n"
        "hint: choose a vocab_size in that range, a power of two for speed."
    )


def test_a_file_that_is_not_json_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")

    with pytest.raises(DataError) as caught:
        Tokenizer.load(path)

    assert str(caught.value) == (
        f"{path} cannot be read as a tokenizer: Expecting property name enclosed in"
        " double quotes: line 1 column 2 (char 1).\n\n"
        "hint: delete it and prepare the data again."
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["tokens"].pop(),
        lambda content: content["tokens"].__setitem__(0, content["tokens"][1]),
        lambda content: content.update(format="other"),
    ],
    ids=["a token missing", "a token twice", "another format"],
)
def test_a_vocabulary_that_is_not_whole_is_refused(tokenizer, tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    content = json.loads(tokenizer.to_json())
    damage(content)
    path.write_text(json.dumps(content))

    with pytest.raises(DataError) as caught:
        Tokenizer.load(path)

    assert str(caught.value) == (
        f"{path} is not a deltaspec-bpe-1 vocabulary: its tokens must be distinct, hold"
        " every byte, and end with <|bos|>.\n\n"
        "hint: delete it and prepare the data again."
    )


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "none.json"

    with pytest.raises(DataError) as caught:
        Tokenizer.load(path)

    reason = f"[Errno 2] {os.strerror(2)}: {str(path)!r}"
    assert str(caught.value) == (
        f"{path} cannot be read as a tokenizer: {reason}.\n\n"
        "hint: delete it and prepare the data again."
    )

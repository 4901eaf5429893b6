import pytest

from core.plugin.header import MOST_EPOCHS, by_heart, of_seeds
from core.verdict import Noise


def test_a_corpus_that_is_read_often_is_told_with_what_to_do_in_80_columns():
    said = by_heart(26.04, 17_956_864, is_estimate=True)

    assert said == [
        "corpus  a trial is about to read its 17,956,864 tokens 26.0 times",
        "        beyond 4 times a model learns text by heart, and that is",
        "        what is ranked (arXiv 2305.16264): give it at least",
        "        120,000,000 tokens, or a shorter --budget",
    ]
    assert max(map(len, said)) <= 80


def test_nothing_is_said_of_text_that_is_hardly_read_again():
    assert by_heart(MOST_EPOCHS, 1_000_000) == []


@pytest.mark.parametrize(
    ("df", "said"), [(1, "1 degree"), (1.2, "1 degree"), (2, "2 degrees")]
)
def test_the_noise_is_told_with_how_well_it_is_known(df: float, said: str):
    assert of_seeds(Noise(sd=0.0127, df=df)) == (
        f"seed sd 0.0127 bpb with {said} of freedom"
    )

"""Small inputs that ask for a great deal: refused at once, before the memory or the time is spent."""

import pytest
import torch

from tokenopt_core.canvas import fit
from tokenopt_core.prompts import LONGEST_PROMPT, MOST_PROMPTS, parse_prompts
from tokenopt_core.tokens import parse_positions

pytestmark = pytest.mark.usefixtures("little_memory")


def test_ranges_far_beyond_the_tokens_are_not_written_down() -> None:
    """90 kB that speak of a billion positions."""
    with pytest.raises(ValueError, match="there is no token position 99999: this tokenizer has 0 to 31"):
        parse_positions("0-99999," * 10_000, 32)
    assert parse_positions("0-31," * 10_000, 32) == list(range(32))


def test_more_prompts_than_anybody_writes() -> None:
    with pytest.raises(ValueError, match=f"these are 50000 prompts: expected at most {MOST_PROMPTS}"):
        parse_prompts("|".join(["a"] * 50_000))
    assert len(parse_prompts("|".join(["a"] * MOST_PROMPTS))) == MOST_PROMPTS


def test_a_prompt_longer_than_a_clip_reads() -> None:
    """Cutting a word of random letters into its parts takes the square of its length."""
    with pytest.raises(ValueError, match=rf"a prompt has 100000 characters, .* at most {LONGEST_PROMPT}"):
        parse_prompts("a fox | " + "x" * 99_999)
    longest = "x" * LONGEST_PROMPT
    assert parse_prompts(longest) == [(longest, 1.0)]


@pytest.mark.parametrize("size", [(1, 16_384), (16_384, 1), (100, 8192)])
def test_a_line_is_not_padded_to_a_square_of_gigabytes(size) -> None:
    with pytest.raises(ValueError, match=r"would be \d+ px wide and nearly all of it padding: choose the mode crop"):
        fit(torch.zeros(1, 3, *size), None, 8, "pad")
    with pytest.raises(ValueError, match="nearly all of it padding"):
        fit(torch.zeros(1, 3, *size), torch.ones(1, 1, *size), 8, "mask")
    assert fit(torch.zeros(1, 3, *size), None, 8, "crop")[0].shape == (1, 3, 8, 8)


def test_small_lines_are_padded() -> None:
    assert fit(torch.zeros(1, 3, 1, 2047), None, 8, "pad")[0].shape == (1, 3, 8, 8)

"""What a prompt says: one text or several with weights."""

from __future__ import annotations

import re

MOST_PROMPTS, LONGEST_PROMPT = 100, 20_000
LARGEST_WEIGHT = 1e6  # of a prompt; beside it one of a millionth is as good as none
_WEIGHTED = re.compile(r"(.*[^\d\s])\s*:\s*(\d+(?:\.\d*)?|\.\d+)", re.DOTALL)


def parse_prompts(text: str) -> list[tuple[str, float]]:
    """Prompts and their weights from text such as "a red apple:2 | at night"; a weight that is not given is 1.

    A colon that follows a digit ("at 10:30") belongs to the text. Raises ValueError for an empty prompt.
    """
    prompts = []
    if text.count("|") >= MOST_PROMPTS:
        raise ValueError(f"these are {text.count('|') + 1} prompts: expected at most {MOST_PROMPTS}")
    for part in text.split("|"):
        if len(part) > LONGEST_PROMPT:
            raise ValueError(f"a prompt has {len(part)} characters, a CLIP reads a sentence: at most {LONGEST_PROMPT}")
        match = _WEIGHTED.fullmatch(part.strip())
        prompt, weight = (match[1].strip(), float(match[2])) if match else (part.strip(), 1.0)
        if weight > LARGEST_WEIGHT:
            raise ValueError(f"the weight {weight:g} is too large: expected at most {LARGEST_WEIGHT:g}")
        if not prompt:
            empty = "the prompt is empty" if "|" not in text else "a prompt between the bars is empty"
            raise ValueError(f"{empty}: say what the picture should show")
        prompts.append((prompt, weight))
    if max(weight for _, weight in prompts) < 1 / LARGEST_WEIGHT:
        raise ValueError("every prompt has weight 0: give at least one more than that")
    return prompts

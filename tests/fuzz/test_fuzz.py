"""Every parser on its fixed corpus, and on mutations for a minute in all; see also ``make fuzz``."""

from __future__ import annotations

import pytest
from driver import fuzz, known_inputs, run_one
from targets import TARGETS

# All targets together take a minute of mutations.
SECONDS_EACH = 60 / len(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    for data in known_inputs(name):
        run_one(name, data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    assert fuzz(name, SECONDS_EACH, first_seed=1) > 5

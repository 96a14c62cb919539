"""The short form of `make fuzz`: the corpus, and small changes to it, break no target."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS, WORDS

SEEDS = sorted(file for file in CORPUS.rglob("*") if file.is_file())


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed.parent.name}/{seed.name}")
def test_the_corpus(seed: Path) -> None:
    """Inputs that broke a target once, or might, break none."""
    TARGETS[seed.parent.name](seed.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_like_it(name: str, data: st.DataObject) -> None:
    """An input with another one in its middle breaks no target."""
    seed = data.draw(
        st.sampled_from([file.read_bytes() for file in SEEDS if file.parent.name == name])
    )
    at, until = sorted(data.draw(st.tuples(*[st.integers(0, len(seed))] * 2)))
    between = b"".join(
        data.draw(st.lists(st.sampled_from(WORDS) | st.binary(max_size=20), max_size=5))
    )

    TARGETS[name](seed[:at] + between + seed[until:])


def test_each_target_has_a_corpus() -> None:
    """No target is fuzzed without a corpus, since random bytes find little."""
    assert {seed.parent.name for seed in SEEDS} == set(TARGETS)

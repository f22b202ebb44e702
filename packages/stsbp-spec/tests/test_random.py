"""The generator: known answers of Threefry-2x32-20, and that draws are what random.py says they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stsbp_spec.contract import random
from stsbp_spec.contract.random import Stream, bits, keep_mask, permutation, threefry2x32, uniform
from stsbp_spec.errors import SpecError

_ONES = 0xFFFFFFFF
_SEEDS = st.integers(0, 2**32 - 1)


def _words(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    x0, x1 = threefry2x32(key, (np.array([counter[0]], np.uint32), np.array([counter[1]], np.uint32)))
    return int(x0[0]), int(x1[0])


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((_ONES, _ONES), (_ONES, _ONES), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_threefry_known_answers(key: tuple[int, int], counter: tuple[int, int], expected: tuple[int, int]) -> None:
    """The known-answer vectors published with Random123."""
    assert _words(key, counter) == expected


@given(seed=_SEEDS, stream=st.sampled_from(list(Stream)), substream=st.integers(0, 2**20), step=_SEEDS)
def test_bits_are_words_of_the_documented_counters(seed: int, stream: Stream, substream: int, step: int) -> None:
    drawn = bits(seed, stream, 5, substream=substream, step=step)
    for i, word in enumerate(drawn):
        key = (seed, (int(stream) + 256 * substream) % 2**32)
        assert int(word) == _words(key, (i // 2, step))[i % 2]


@given(seed=_SEEDS, n=st.integers(0, 300), more=st.integers(1, 50))
def test_a_longer_draw_begins_with_a_shorter_one(seed: int, n: int, more: int) -> None:
    assert np.array_equal(bits(seed, Stream.INIT, n + more)[:n], bits(seed, Stream.INIT, n))


def test_streams_substreams_and_steps_do_not_share_bits() -> None:
    draws = [
        bits(1, stream, 64, substream=substream, step=step)
        for stream in Stream
        for substream in (0, 1, 16)
        for step in (0, 1)
    ]
    words = np.concatenate(draws)
    assert len(np.unique(words)) == len(words)


def test_uniform_is_open_and_has_the_moments_of_a_uniform() -> None:
    v = uniform(3, Stream.ENCODER, 200_000)
    assert 0 < v.min() < 1e-4
    assert 1 - 1e-4 < v.max() < 1
    # Standard errors of mean and variance: 1/sqrt(12 n) = 6.5e-4 and 1/sqrt(180 n) = 1.7e-4; five of them.
    assert abs(v.mean() - 0.5) < 3.3e-3
    assert abs(v.var() - 1 / 12) < 8.4e-4


@given(seed=_SEEDS, n=st.integers(0, 200), step=st.integers(0, 5))
def test_permutation_is_one(seed: int, n: int, step: int) -> None:
    assert sorted(permutation(seed, Stream.SHUFFLE, n, step=step)) == list(range(n))


def test_permutations_of_two_steps_differ() -> None:
    first, second = (permutation(1, Stream.SHUFFLE, 100, step=step) for step in (0, 1))
    assert (first != second).sum() > 90


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_keep_mask_drops_at_its_rate(rate: float) -> None:
    n = 100_000
    mask = keep_mask(5, 16, 3, (n,), rate)
    assert set(np.unique(mask)) <= {0, 1}
    assert abs((1 - mask).mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / n)


def test_keep_mask_compares_words_with_a_threshold_of_32_bits() -> None:
    words = bits(2, Stream.DROPOUT, 30, substream=7, step=4).reshape(5, 6)
    assert np.array_equal(keep_mask(2, 7, 4, (5, 6), 0.3), words >= round(0.3 * 2**32))


def _drawing(words: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every draw give these words."""

    def drawn(seed: int, stream: int, n: int, **place: int) -> npt.NDArray[np.uint32]:
        assert n == len(words)
        return np.array(words, np.uint32)

    monkeypatch.setattr(random, "_bits", drawn)


def test_keep_mask_keeps_a_word_that_equals_the_rounded_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    threshold = 1_288_490_189  # 0.3 * 2**32 = 1288490188.8
    _drawing([threshold - 1, threshold, threshold + 1, 0, _ONES], monkeypatch)
    assert keep_mask(1, 2, 3, (5,), 0.3).tolist() == [0, 1, 1, 0, 1]


def test_permutation_is_the_stable_order_of_64_bit_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    high, low = [5, 2**31, 5, _ONES, 5, 0, 2**31, 1], [2**31, 7, 3, 0, 2**31, _ONES, 6, 2**31 + 1]
    _drawing([word for pair in zip(high, low, strict=True) for word in pair], monkeypatch)
    keys = [(a << 32) + b for a, b in zip(high, low, strict=True)]
    assert permutation(1, Stream.SHUFFLE, 8).tolist() == sorted(range(8), key=keys.__getitem__)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_32_bits_is_refused(seed: int) -> None:
    with pytest.raises(SpecError, match="seed must be an integer"):
        bits(seed, Stream.INIT, 3)


_RANGES = {"stream": 2**8, "substream": 2**24, "step": 2**32, "n": 2**33 + 1, "first": 2**33 + 1}
"""One more than the largest value of an argument of `bits`."""
_BEYOND = _RANGES["substream"]


@pytest.mark.parametrize("name", _RANGES)
@pytest.mark.parametrize("wrong", ["beyond", -1, 2**70, 1.5, True, None, "1"], ids=str)
def test_bits_refuses_what_would_be_another_draw(name: str, wrong: Any) -> None:
    """Modulo 2^32, a number that is too large would give the words of another one."""
    arguments = {"seed": 0, "stream": Stream.INIT, "n": 2} | {name: _RANGES[name] if wrong == "beyond" else wrong}
    with pytest.raises(SpecError, match=r"must be (an integer|at least 0|at most \d+), got"):
        bits(**arguments)


def test_the_largest_numbers_of_a_draw_are_taken() -> None:
    drawn = bits(0, 255, 2, substream=2**24 - 1, step=2**32 - 1, first=2**33 - 2)
    assert tuple(drawn.tolist()) == _words((0, _ONES), (_ONES, _ONES))


@pytest.mark.parametrize("wrong", [_BEYOND, -1, 2**70, 1.5, True, np.arange(5)], ids=str)
def test_uniform_and_permutation_refuse_what_is_no_substream(wrong: Any) -> None:
    for draw in (uniform, permutation):
        with pytest.raises(SpecError, match=r"^substream must be"):
            draw(0, Stream.SPLIT, 5, substream=wrong)
        with pytest.raises(SpecError, match=r"^step must be"):
            draw(0, Stream.SPLIT, 5, step=2**32 if wrong is _BEYOND else wrong)

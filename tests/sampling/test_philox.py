"""Philox against the known answers that Random123 publishes (examples/kat_vectors, philox4x32 10)."""

import numpy as np
import pytest

from initwell.sampling.philox import philox4x32

KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    low, high = words(key)
    drawn = philox4x32((low, high), np.array([words(counter)], dtype=np.uint32))
    assert drawn.dtype == np.uint32
    assert drawn[0].tolist() == words(answer)


def test_rows_do_not_touch_each_other() -> None:
    counters = np.array([words(counter) for counter, _, _ in KNOWN_ANSWERS], dtype=np.uint32)
    together = philox4x32((1, 2), counters)
    for row, counter in enumerate(counters):
        assert together[row].tolist() == philox4x32((1, 2), counter[None])[0].tolist()


def test_no_counters_give_no_words() -> None:
    assert philox4x32((1, 2), np.empty((0, 4), np.uint32)).shape == (0, 4)

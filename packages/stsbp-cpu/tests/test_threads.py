"""How many threads a kernel takes."""

from __future__ import annotations

import pytest
from numba import config, get_num_threads, set_num_threads
from stsbp_cpu.threads import threads_for


@pytest.mark.parametrize("chosen", sorted({1, config.NUMBA_NUM_THREADS}))
def test_few_elements_take_one_thread_and_many_no_more_than_were_chosen(chosen: int) -> None:
    before = get_num_threads()
    set_num_threads(chosen)
    try:
        with threads_for(100):
            assert get_num_threads() == 1
        assert get_num_threads() == chosen
        with pytest.raises(ZeroDivisionError), threads_for(100):
            raise ZeroDivisionError
        assert get_num_threads() == chosen
        with threads_for(10**9):
            assert get_num_threads() == chosen
        assert get_num_threads() == chosen
    finally:
        set_num_threads(before)

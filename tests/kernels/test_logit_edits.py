"""What the host sends of the tokens and biases of sequences whose logits are edited."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from kernels.batch import IN_PROMPT, pack
from kernels.logit_edits import MAX_COUNT, SHORT_PROMPT, EditResetList, allocate_edits, count_tokens, reset_bytes


def test_tokens_are_counted_in_the_output_and_marked_if_they_are_in_the_prompt() -> None:
    counts = count_tokens([5, 3, 5], [9, 3, 9, 9])
    assert counts.tolist() == [(3, IN_PROMPT + 1), (5, IN_PROMPT), (9, 3)]
    assert count_tokens([], []).size == 0
    assert count_tokens([], [4] * (MAX_COUNT + 5)).tolist() == [(4, MAX_COUNT)]
    assert count_tokens([5] * (SHORT_PROMPT + 1), []).tolist() == [(5, IN_PROMPT)]
    assert set(count_tokens([5, 3, 5], []).tolist()) == {(3, IN_PROMPT), (5, IN_PROMPT)}


def test_resets_tell_which_counts_and_biases_are_theirs() -> None:
    resets = EditResetList()
    resets.put(7, count_tokens([1], [2]), {3: 0.5}, (4, 5))
    resets.put(2, count_tokens([], []), {}, ())
    resets.put(1, count_tokens([6], []), {8: -2.0}, ())
    arrays = resets.arrays()
    assert arrays.resets.tolist() == [(7, 0, 2, 0, 3), (2, 2, 0, 3, 0), (1, 2, 1, 3, 1)]
    assert arrays.counts["token_id"].tolist() == [1, 2, 6]
    assert arrays.biases.tolist() == [(3, 0.5), (4, 0.0), (5, 0.0), (8, -2.0)]
    assert resets.num_entries == 7


def test_resets_fit_the_bytes_that_are_taken_for_them() -> None:
    resets = EditResetList()
    resets.put(0, count_tokens([1, 2, 3], []), {3: 0.5}, (4,))
    arrays = resets.arrays()
    staging = np.empty(reset_bytes(1, 5), np.uint8)
    num_bytes, _ = pack({"resets": arrays.resets, "counts": arrays.counts, "biases": arrays.biases}, staging)
    assert num_bytes <= staging.nbytes


def test_a_row_has_a_count_of_each_token_in_words_that_are_read_eight_at_a_time() -> None:
    edits = allocate_edits(SimpleNamespace(allocate=np.zeros), 3, 50257, max_biases=10)
    assert edits.counts.shape == (3, 50264)
    assert edits.biases.shape == (3, 10)

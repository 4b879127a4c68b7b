from racm3.evaluation.recall import found_within


def test_only_the_first_k_count() -> None:
    ranked = [[True, False], [False, True], [False, False, True], []]
    assert [found_within(ranked, k).tolist() for k in (1, 2)] == [[1, 0, 0, 0], [1, 1, 0, 0]]

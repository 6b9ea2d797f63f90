"""Which items are neighbours."""

import numpy as np

from mfalcon.graph.item_graph import item_graph

NO_SIDE: dict[str, np.ndarray] = {}


def edges_of(graph: object) -> dict[int, list[int]]:
    neighbours, weights = graph.neighbours, graph.weights  # type: ignore[attr-defined]
    return {row: neighbours[row][weights[row] > 0].tolist() for row in range(len(neighbours))}


def test_items_of_one_user_are_neighbours_by_how_few_he_likes() -> None:
    user = np.array([0, 0, 1, 1, 1, 1])
    rows = np.array([1, 2, 1, 3, 4, 5])
    graph = item_graph(user, rows, 7, NO_SIDE, most=3)
    assert edges_of(graph) == {0: [], 1: [2, 3, 4], 2: [1], 3: [4, 5, 1], 4: [3, 5, 1], 5: [3, 4, 1], 6: []}
    np.testing.assert_allclose(graph.weights[1], np.array([0.5, 0.25, 0.25]) / 2**0.5, rtol=1e-6)
    assert graph.num_liked.tolist() == [0, 2, 1, 1, 1, 1, 0]


def test_the_naive_counts_are_the_same() -> None:
    rng = np.random.default_rng(1)
    user, rows = np.sort(rng.integers(0, 9, 200)), rng.integers(0, 12, 200)
    graph = item_graph(user, rows, 12, NO_SIDE, most=11, reach=7)
    known = rows > 0
    user, rows = user[known], rows[known]
    naive = np.zeros((12, 12))
    for i in range(len(user)):
        for j in range(i + 1, min(i + 8, len(user))):
            if user[i] == user[j] and rows[i] != rows[j]:
                naive[rows[i], rows[j]] += 1 / (user == user[i]).sum()
    naive += naive.T
    liked = np.sqrt(np.maximum(np.bincount(rows, minlength=12), 1))
    naive /= liked[:, None] * liked
    made = np.zeros((12, 12))
    np.put_along_axis(made, graph.neighbours, graph.weights, axis=1)
    made[:, 0] = 0
    np.testing.assert_allclose(made, naive, rtol=1e-6)
    assert (np.diff(graph.weights, axis=1) <= 0).all()


def test_items_that_nobody_liked_are_beside_those_that_share_most() -> None:
    tags = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]], np.uint8)
    user, rows = np.array([0, 0, 0]), np.array([1, 2, 3])
    graph = item_graph(user, rows, 6, {"genres": tags}, most=2)
    assert edges_of(graph) == {0: [], 1: [2, 3], 2: [1, 3], 3: [1, 2], 4: [2, 1], 5: []}
    assert graph.weights[4].max() < graph.weights[1].min()


def test_a_graph_of_nothing_has_no_edge() -> None:
    nothing = np.empty(0, np.int64)
    graph = item_graph(nothing, nothing, 4, {"decade": np.array([1, 1, 2])})
    assert graph.num_edges == 0 and graph.num_rows == 4
    assert item_graph(nothing, nothing, 1, NO_SIDE).num_edges == 0
    only_unknown = item_graph(np.zeros(5, np.int64), np.zeros(5, np.int64), 4, NO_SIDE)
    assert only_unknown.num_edges == 0

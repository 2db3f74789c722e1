"""States that are not what was saved: every rank refuses them before the first step, with the same message."""

import copy
import io
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import hvd_compress
from hvd_compress import DGC, LGC, RandKMaxNorm, SIDCo, TopK
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.graph_engine import GraphEngine
from hvd_compress.runtime.graph_step import TracedCall
from hvd_compress.runtime.world import World
from hvd_compress.state_format import check_state, checksum, seal
from hvd_compress.topology import Topology
from tests.gradients import gradient
from tests.runtime.team import disagree
from tests.simulation import GraphSimulation, Simulation

SIZES = {"stem": 300, "body": 1500, "head": 200}
State = dict[str, Any]


def states_of(compressor: hvd_compress.Compressor, steps: int = 2, workers: int = 2) -> list[State]:
    sim = Simulation(compressor, workers)
    for step in range(steps):
        sim.step(gradients(step, workers))
    return [c.state_dict() for c in sim.compressors]


def gradients(step: int, workers: int = 2) -> dict[str, list[np.ndarray]]:
    return {name: [gradient("laplace", size, step, rank) for rank in range(workers)] for name, size in SIZES.items()}


def topk() -> TopK:
    return TopK(0.1, min_numel=1)


def lgc(**keywords: Any) -> LGC:
    arguments = {"min_numel": 1, "dense_steps": 0, "encoder": (8, 8, 4), "decoder": (8, 8), "trainer": "inline"}
    return LGC(0.2, **{**arguments, **keywords})


def refused(make: Callable[[], hvd_compress.Compressor], states: list[Any]) -> str:
    """Return the message that every rank raises, and raises under both schedulers."""
    compressors = [make() for _ in states]
    for compressor, state in zip(compressors, states, strict=True):
        compressor.load_state_dict(state)
    (message,) = set(disagree(compressors, [list(SIZES.items())[::-1]] * len(states)))
    graph = GraphSimulation(make(), len(states))
    for compressor, state in zip(graph.compressors, states, strict=True):
        compressor.load_state_dict(state)
    with pytest.raises(ValueError, match="rank"):
        graph.step(gradients(2, len(states)))
    return message


@pytest.fixture(scope="module")
def saved() -> list[State]:
    return states_of(topk())


def changed(state: State, *path: Any, to: Any = None, remove: bool = False) -> State:
    """Return a sealed copy with the value at ``path`` changed, by ``to`` if that is a function, or removed."""
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to(inner[path[-1]]) if callable(to) else to
    return seal(state)


CHANGES: list[tuple[tuple[Any, ...], Any, str]] = [
    (("version",), 1, "the state has version 1, this library reads 2"),
    (("version",), 99, "the state has version 99, this library reads 2"),
    (("version",), None, "'version' is of type NoneType"),
    (("compressor",), "sidco", "the state is of compressor 'sidco', this is 'topk'"),
    (("rank",), 2, "the state is of rank 2 of 2, which cannot be"),
    (("rank",), -1, "the state is of rank -1 of 2, which cannot be"),
    (("workers",), 0, "rank 1 of 0, which cannot be"),
    (("workers",), True, "'workers' is of type bool"),
    (("step",), -1, "a negative number of steps: -1"),
    (("step",), 2.0, "'step' is of type float"),
    (("step",), 7, "the state has 7 steps, but its buckets have [2]"),
    (("steps",), [-2], "a negative number of steps"),
    (("steps",), [True], "'steps' is [True]"),
    (("steps",), ["2"], "'steps' is ['2']"),
    (("steps",), [2, 2], "the state has 1 buckets, but 'steps' of 2"),
    (("steps",), None, "'steps' is of type NoneType"),
    (("layout",), ["ab"], "'layout' is ['ab']"),
    (("layout",), [[1]], "'layout' is [[1]]"),
    (("layout",), [[]], "a bucket without parameters"),
    (("layout",), [], "the state has 0 buckets, but 'algorithm' of 1"),
    (("layout",), lambda it: it * 2, "the state has 2 buckets, but 'algorithm' of 1"),
    (("layout", 0), lambda it: it + it[:1], "more than one place of its buckets: stem"),
    (("layout", 0), lambda it: [*it, "tail"], "in its buckets that its memory lacks: tail"),
    (("algorithm",), None, "'algorithm' is of type NoneType"),
    (("algorithm",), [], "the state has 1 buckets, but 'algorithm' of 0"),
    (("algorithm",), [[1]], "'algorithm' is [[1]]"),
    (("algorithm",), [{"x": 1j}], "'algorithm' is a list of 1"),
    (("algorithm",), [{"x": 2**64}], "'algorithm' is a list of 1"),
    (("algorithm",), [{1: 1}], "'algorithm' is a list of 1"),
    (("shared",), None, "'shared' is of type NoneType"),
    (("shared",), {"x": 1}, "a shared state, which this compressor does not keep: x"),
    (("rates",), None, "'rates' is of type NoneType"),
    (("rates",), {"body": 1}, "'rates' is {'body': 1}"),
    (("rates",), {3: 0.1}, "'rates' is a dict of 1"),
    (("rates",), {"body": -0.1}, "the state has a learning rate of -0.1 for 'body', which cannot be"),
    (("rates",), {"body": float("nan")}, "a learning rate of nan for 'body', which cannot be"),
    (("memory",), {}, "in its buckets that its memory lacks: body, head, stem"),
    (("memory",), {"a": 3}, "'memory' is {'a': 3}"),
    (("memory", "body"), {}, "it has nothing of 'body', and this compressor keeps residual"),
    (("memory", "body"), {"velocity": np.zeros(1500, np.float32)}, "it has velocity of 'body', and this compressor k"),
    (("memory", "tail"), {}, "parameters this model does not compress: tail"),
    (("memory", "body", "residual"), np.zeros(5, np.float32), "the saved residual of 'body' has shape (5,), not (1500"),
    (("memory", "body", "residual"), np.zeros((1500, 1), np.float32), "has shape (1500, 1), but what is held back is"),
    (("memory", "body", "residual"), np.full(1500, np.nan, np.float32), "the saved residual of 'body' is not finite"),
    (("memory", "body", "residual"), np.full(1500, np.inf, np.float32), "the saved residual of 'body' is not finite"),
    (("memory", "body", "residual"), np.zeros(1500), "has dtype float64, not float32"),
    (("memory", "body", "residual"), np.zeros(1500, int), "has dtype int64, not float32"),
    (("memory", "body", "residual"), np.zeros(1500, bool), "has dtype bool, not float32"),
    (("memory", "body", "residual"), np.zeros(1500, complex), "has dtype complex128, not float32"),
    (("memory", "body", "residual"), None, "has dtype object, not float32"),
    (("memory", "body", "residual"), [[1], [1, 2]], "is not an array"),
]


@pytest.mark.parametrize(
    ("path", "to", "words"), CHANGES, ids=[f"{path[-1]}-{words:.40}" for path, _, words in CHANGES]
)
def test_a_field_that_cannot_be(saved: list[State], path: tuple[Any, ...], to: Any, words: str) -> None:
    """The checksum is right, so that the field's own check has to find it; rank 0 has nothing wrong and raises too."""
    message = refused(topk, [saved[0], changed(saved[1], *path, to=to)])
    assert message.startswith("rank 1: the saved state")
    assert words in message


def test_a_tensor_that_numpy_cannot_read(saved: list[State]) -> None:
    """Of another device, or a type that it does not know."""
    state = copy.deepcopy(saved[1])
    state["memory"]["body"]["residual"] = torch.zeros(1500, dtype=torch.bfloat16)
    assert "the saved residual of 'body' is not an array: " in refused(topk, [saved[0], state])


@pytest.mark.parametrize("key", sorted(states_of(topk(), steps=1)[0]))
def test_a_key_that_is_missing(saved: list[State], key: str) -> None:
    state = {name: value for name, value in saved[1].items() if name != key}
    message = refused(topk, [saved[0], state])
    assert f"rank 1: the saved state: not a compressor's state: of its keys it lacks {key}" in message


@pytest.mark.parametrize("state", ["x", 3, None, [1], {}, {"step": 0}, {3: 4, "version": 2}], ids=repr)
def test_not_a_state(saved: list[State], state: Any) -> None:
    assert "rank 1: the saved state: not a compressor's state: " in refused(topk, [saved[0], state])


def test_an_unknown_key(saved: list[State]) -> None:
    assert "and it has 'momentum' besides" in refused(topk, [saved[0], seal({**saved[1], "momentum": 3})])


def test_lists_within_lists(saved: list[State]) -> None:
    """They are refused before anything goes through them to their end, which Python could not."""
    deep: Any = []
    for _ in range(20_000):
        deep = [deep]
    state = {**saved[1], "shared": {"x": deep}}
    assert "'shared' is a dict of 1" in refused(topk, [saved[0], state])
    while deep:
        (deep,) = deep  # else Python takes it apart recursively


def test_a_parameter_without_a_bucket(saved: list[State]) -> None:
    """A graph may not have come to it when the state was saved; where all buckets are known, it is damaged."""
    state = changed(saved[1], "layout", 0, to=lambda it: it[1:])
    compressors = [topk(), topk()]
    for compressor, mine in zip(compressors, [saved[0], state], strict=True):
        compressor.load_state_dict(mine)
    (message,) = set(disagree(compressors, [list(SIZES.items())] * 2))
    assert message == "rank 1: the saved state has no bucket for the parameters stem"


@pytest.mark.parametrize("ranks", [[1], [0, 1]])
def test_a_parameter_that_is_missing(saved: list[State], ranks: list[int]) -> None:
    """The state has never heard of it: on one rank, or on all."""
    states = copy.deepcopy(saved)
    for rank in ranks:
        states[rank]["layout"][0].remove("stem")
        del states[rank]["memory"]["stem"]
        states[rank] = seal(states[rank])
    compressors = [topk(), topk()]
    for compressor, state in zip(compressors, states, strict=True):
        compressor.load_state_dict(state)
    (message,) = set(disagree(compressors, [list(SIZES.items())] * 2))
    assert message == f"rank {ranks[0]}: the saved state has no bucket for the parameters stem"


@pytest.mark.parametrize("ranks", [[1], [0, 1]])
def test_a_parameter_of_the_first_step_that_is_missing_in_a_graph(saved: list[State], ranks: list[int]) -> None:
    """On one rank, or on all: refused by name, as where all buckets are known."""
    states = copy.deepcopy(saved)
    for rank in ranks:
        states[rank]["layout"][0].remove("stem")
        del states[rank]["memory"]["stem"]
    graph = GraphSimulation(topk(), 2)
    for compressor, state in zip(graph.compressors, map(seal, states), strict=True):
        compressor.load_state_dict(state, source="/checkpoints/7.npz")
    with pytest.raises(ValueError, match=f"^rank {ranks[0]}: /checkpoints/7.npz lacks the parameters stem$"):
        graph.step(gradients(2))


def test_a_parameter_that_comes_later_in_a_graph(saved: list[State], caplog: pytest.LogCaptureFixture) -> None:
    """It may be new: nothing is held back of it, which is said, once, and what the state has is restored."""
    state = seal({**saved[0], "workers": 1})
    compressor = topk()
    compressor.load_state_dict(state, source="/checkpoints/7.npz")
    engine = GraphEngine(compressor, "test", lambda: World(0, 0, Topology.single(1)), lambda record: record)
    for name, size in SIZES.items():
        engine.traced_bucket([Parameter(name, size)])
    engine.begin(TracedCall([]))
    with caplog.at_level(logging.WARNING):
        engine.traced_bucket([Parameter("branch", 100)])
        engine.traced_bucket([Parameter("branch", 100), Parameter("stem", SIZES["stem"])])
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "/checkpoints/7.npz lacks the parameters branch: nothing is held back of them yet"
    now = engine.state_dict()["memory"]
    assert not now["branch"]["residual"].any()
    for name in SIZES:
        np.testing.assert_array_equal(now[name]["residual"], state["memory"][name]["residual"])


def test_the_message_names_the_source(saved: list[State]) -> None:
    compressors = [topk(), topk()]
    compressors[0].load_state_dict(saved[0], source="/checkpoints/7.rank0.pt")
    compressors[1].load_state_dict({}, source="/checkpoints/7.rank1.pt")
    messages = disagree(compressors, [list(SIZES.items())] * 2)
    assert all("rank 1: /checkpoints/7.rank1.pt: not a compressor's state" in message for message in messages)


def test_a_refused_state_is_not_saved_over(saved: list[State]) -> None:
    """Whoever saves before the first step must not replace a good checkpoint by an empty one; a good state mends it."""
    compressor = topk()
    compressor.load_state_dict({}, source="7.pt")
    with pytest.raises(ValueError, match=r"7\.pt: not a compressor's state"):
        compressor.state_dict()
    compressor.load_state_dict(saved[0])
    assert pickle.dumps(compressor.state_dict()) == pickle.dumps(saved[0])


@pytest.mark.parametrize(
    ("make", "key", "value", "words"),
    [
        (lambda: SIDCo(0.1, min_numel=1), "stages", 0, "the saved stages must be from 1 to 32, got 0"),
        (lambda: SIDCo(0.1, min_numel=1), "stages", 10**6, "the saved stages must be from 1 to 32"),
        (lambda: SIDCo(0.1, min_numel=1), "stages", "2", "the saved stages must be an int"),
        (lambda: SIDCo(0.1, min_numel=1), "found", -3, "the saved found must be at least 0"),
        (lambda: SIDCo(0.1, min_numel=1), "stagse", 1, "unknown key 'stagse'"),
        (lambda: RandKMaxNorm(0.1, min_numel=1), "position", 2001, "the saved position must be from 0 to 2000"),
        (lambda: RandKMaxNorm(0.1, min_numel=1), "position", -1, "the saved position must be from 0 to 2000"),
        (lambda: RandKMaxNorm(0.1, min_numel=1), "k", 0, "the saved k must be from 1 to 2000"),
        (lambda: RandKMaxNorm(0.1, min_numel=1), "key", 1.5, "the saved key must be an int"),
        (lgc, "debt", -1, "the saved debt must be at least 0"),
        (lgc, "top_k_from", "x", "the saved top_k_from must be an int"),
    ],
)
def test_the_algorithm_s_own_numbers(make: Callable[[], Any], key: str, value: Any, words: str) -> None:
    states = states_of(make())
    assert words in refused(make, [states[0], changed(states[1], "algorithm", 0, key, to=value)])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("status", 99, "the saved status must be from 0 to 3, got 99"),
        ("status", True, "the saved status must be an int"),
        ("status", 1, "the saved status is 1, with 0 bytes to be sent"),
        ("switch", -1, "the saved switch must be at least 0"),
        ("switch", 3, "the saved switch is step 3, but there are no weights"),
        ("stays", ["x"], "the saved stays must be a reason and a step"),
        ("stays", [0, 0], "the saved reason to stay with top-k must be text"),
        ("stays", ["x", -1], "the saved first step of top-k must be at least 0"),
        ("weights", 3, "the saved weights must be text, got 3"),
        ("weights", '"', "the saved weights is not in base 85"),
        ("weights", "abcdefgh", "the saved autoencoder holds no weights"),
        ("trainer", "abcdefgh", "it has no metadata 'about'"),
        ("incoming", "0" * 500_000, "more than there can be"),
        ("architecture", [], "not an architecture: []"),
        ("architecture", {"variant": "allreduce"}, "not an architecture: {'variant'"),
        ("more", 1, "unknown key 'more'"),
    ],
)
def test_what_lgc_shares(key: str, value: Any, words: str) -> None:
    states = states_of(lgc())
    assert words in refused(lgc, [states[0], changed(states[1], "shared", key, to=value)])


@pytest.mark.parametrize("key", sorted(lgc().shared_state()))
def test_what_lgc_shares_and_lacks(key: str) -> None:
    states = states_of(lgc())
    assert f"the saved state of LGC lacks {key}" in refused(
        lgc, [states[0], changed(states[1], "shared", key, remove=True)]
    )


def test_lgc_without_what_it_shares() -> None:
    states = states_of(lgc())
    assert "the saved state of LGC lacks architecture" in refused(lgc, [states[0], changed(states[1], "shared", to={})])


def test_ranks_of_different_phases() -> None:
    states = states_of(lgc())
    later = changed(states[1], "shared", "stays", to=["the trainer has died", 2])
    assert "ranks disagree on the restored memories" in refused(lgc, [states[0], later])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container and key of a state whose value is not a container."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])
        else:
            yield value, key


def flipped(value: Any, rng: np.random.Generator) -> Any:
    """Return a value with one bit of it changed."""
    if isinstance(value, np.ndarray):
        changed = value.copy()
        changed.view(np.uint8)[rng.integers(changed.nbytes)] ^= np.uint8(1 << rng.integers(8))
        return changed
    if isinstance(value, str):
        at = int(rng.integers(len(value))) if value else 0
        return value[:at] + chr(ord(value[at]) ^ (1 << int(rng.integers(7)))) + value[at + 1 :] if value else "x"
    return int(value) ^ (1 << int(rng.integers(20))) if isinstance(value, int) else 1


@pytest.mark.parametrize("make", [topk, lambda: DGC(0.1, min_numel=1), lambda: SIDCo(0.1, min_numel=1), lgc])
def test_one_bit_anywhere(make: Callable[[], hvd_compress.Compressor]) -> None:
    """Of any number, text or array."""
    compressor = make()
    state = states_of(compressor)[0]
    check_state(compressor.name, state)
    rng = np.random.default_rng(1)
    number = len(list(places(state)))
    for flip in range(max(100, number)):
        damaged = copy.deepcopy(state)
        inner, key = list(places(damaged))[flip % number]
        inner[key] = flipped(inner[key], rng)
        with pytest.raises((TypeError, ValueError)):
            check_state(compressor.name, damaged)


def test_one_bit_anywhere_in_a_file() -> None:
    """What PyTorch reads from a damaged file is either refused or what was saved."""
    state = states_of(topk())[0]
    for arrays in state["memory"].values():
        arrays["residual"] = torch.from_numpy(arrays["residual"])
    file = io.BytesIO()
    torch.save(state, file)
    rng, refusals = np.random.default_rng(2), 0
    for _ in range(400):
        content = bytearray(file.getvalue())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        try:
            found = torch.load(io.BytesIO(content), weights_only=True)
            check_state("topk", found)
        except Exception:  # of pickle, of zip, of PyTorch and of our own
            refusals += 1
        else:
            assert pickle.dumps(checksum(found)) == pickle.dumps(checksum(state))
    assert refusals > 200


def test_the_checksum_does_not_depend_on_how_a_state_is_stored() -> None:
    """Tuples come back as lists, NumPy's numbers as Python's, arrays as tensors, and keys in another order."""
    left = {"a": (1, 2.5, None), "b": np.float64(0.1), "c": np.arange(5, dtype=np.float32), "d": {"x": "é", "y": True}}
    right = {"d": {"y": True, "x": "é"}, "c": torch.arange(5.0), "b": 0.1, "a": [1, 2.5, None]}
    assert checksum(left) == checksum(right)
    assert checksum(json.loads(json.dumps({"a": [1e-45, "x"]}))) == checksum({"a": [1e-45, "x"]})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, True), (1, 1.0), (0.0, -0.0), (None, "None"), ([1, 2], [12]), (["a", "b"], ["ab"]), ([[1], 2], [[1, 2]]),
        ({"a": {}}, {"a": []}), ({"a": 1}, {"b": 1}), (np.zeros(2, np.float32), np.zeros(1)),
        (np.zeros((2, 3)), np.zeros((3, 2))), ("\ud800", "?"),
    ],
    ids=repr,
)  # fmt: skip
def test_checksums_of_what_is_not_the_same(left: Any, right: Any) -> None:
    assert checksum(left) != checksum(right)

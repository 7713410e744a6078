"""aggregate and aggregate_embeddings against the float64 references, on every CPU level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdul_fast import ops
from cdul_fast.reference import aggregate as reference

LEVELS = ("baseline", "avx2", "avx512")
MACHINE_LEVELS = LEVELS[: LEVELS.index(ops.best_cpu_level()) + 1]

SCORE_TOLERANCE = 1e-6  # float32 softmax outputs in [0, 1]
COSINE_TOLERANCE = 5e-7  # float32 sums of up to 1024 products

SIZES = {
    "images": st.sampled_from((0, 1, 5)),
    "views": st.sampled_from((1, 2, 3, 10, 17, 101)),
    "classes": st.sampled_from((1, 3, 16, 17, 80, 1000)),
    "seed": st.integers(0, 2**32 - 1),
}
RULES = {
    "aggregator": st.sampled_from(ops.AGGREGATORS),
    "zeta": st.sampled_from((0.0, 0.01, 0.3, 0.5, 1.0)),
    "lam": st.sampled_from((-1.0, -0.4, 0.0, 0.7, 1.0)),
}


@pytest.fixture(params=MACHINE_LEVELS)
def level(request):
    with ops.force_cpu_level(request.param):
        yield request.param


def random_cosines(seed: int, images: int, views: int, classes: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.5, (images, views, classes)).astype(np.float32)


def away_from_threshold(cosines: np.ndarray, scale: float, zeta: float) -> np.ndarray:
    """[B, C]: where the largest snippet score is not so near zeta that rounding decides."""
    if cosines.shape[1] == 1:
        return np.ones((cosines.shape[0], cosines.shape[2]), dtype=bool)
    alpha = reference.softmax(scale * cosines[:, 1:].astype(np.float64)).max(axis=1)
    return np.abs(alpha - zeta) > 2 * SCORE_TOLERANCE


def check_scores(got: np.ndarray, cosines: np.ndarray, tolerance: float, **rule) -> None:
    assert got.dtype == np.float32
    want = reference.aggregate(cosines, **rule)
    assert got.shape == want.shape
    clear = away_from_threshold(cosines, rule.get("scale", 100.0), rule.get("zeta", 0.0))
    np.testing.assert_allclose(got[clear], want[clear], rtol=0, atol=tolerance)


@pytest.mark.parametrize("which", MACHINE_LEVELS)
@settings(max_examples=60, deadline=None)
@given(scale=st.sampled_from((1.0, 20.0, 100.0, 1000.0)), **SIZES, **RULES)
def test_aggregate_equals_reference(which, images, views, classes, seed, **rule):
    cosines = random_cosines(seed, images, views, classes)
    with ops.force_cpu_level(which):
        got = ops.aggregate(cosines, **rule)
    check_scores(got, cosines, SCORE_TOLERANCE, **rule)


@pytest.mark.parametrize("classes", [1000, 10_000])
def test_small_scores_of_many_classes_add_up(level, classes):
    """Beside one large score, thousands of small ones: added one by one they came to 1.1e-6 too little."""
    for seed in (564, 1376, 1453):
        cosines = np.random.default_rng(seed).normal(0, 0.06, (1, 17, classes)).astype(np.float32)
        for aggregator in ("global", "max"):
            check_scores(
                ops.aggregate(cosines, aggregator=aggregator, lam=1.0), cosines, SCORE_TOLERANCE,
                aggregator=aggregator, lam=1.0,
            )  # fmt: skip


@pytest.mark.parametrize("which", MACHINE_LEVELS)
@settings(max_examples=40, deadline=None)
@given(
    dim=st.sampled_from((1, 3, 16, 33, 512, 1024)),
    kind=st.sampled_from(("float32", "float16", "bfloat16", "float64")),
    tensor=st.booleans(),
    **SIZES,
    **RULES,
)
def test_aggregate_embeddings_equals_reference(
    which, dim, kind, tensor, images, views, classes, seed, **rule
):
    rng = np.random.default_rng(seed)
    views = min(views, 17)
    texts = rng.normal(size=(classes, dim)).astype(np.float32)
    pixels = torch.from_numpy(rng.normal(size=(images, views, dim))).to(getattr(torch, kind))
    want = reference.cosines(pixels.double().numpy(), texts)
    given_images = pixels if tensor or kind == "bfloat16" else pixels.numpy()
    cosines = np.full((images, views, classes), np.nan, dtype=np.float32)
    with ops.force_cpu_level(which):
        scores = ops.aggregate_embeddings(given_images, texts, cosines_out=cosines, **rule)
        alone = ops.cosines(given_images, texts)
    np.testing.assert_allclose(cosines, want, rtol=0, atol=COSINE_TOLERANCE)
    np.testing.assert_array_equal(np.asarray(alone), cosines)
    check_scores(np.asarray(scores), cosines, SCORE_TOLERANCE, **rule)


def clip_like(dim: int, classes: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings with cosines between about 0 and 0.4, as CLIP's."""
    rng = np.random.default_rng(3)
    texts = rng.normal(size=(classes, dim)).astype(np.float32)
    own = texts[rng.integers(0, classes, (40, 10))]
    return (0.35 * own + rng.normal(size=own.shape)).astype(np.float32), texts


def test_scores_of_clip_like_embeddings(level):
    images, texts = clip_like(1024)
    want = reference.aggregate(reference.cosines(images, texts))
    got = ops.aggregate_embeddings(images, texts)
    np.testing.assert_allclose(got, want, rtol=0, atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("dim", [1, 7, 512, 1023])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_bfloat16_products_are_of_rounded_values(level, dim, kind):
    images, texts = clip_like(dim, classes=19)
    given_images = torch.from_numpy(images).to(kind)
    lengths = given_images.double().norm(dim=-1, keepdim=True)
    unit_texts = torch.from_numpy(texts / np.linalg.norm(texts, axis=1, keepdims=True))
    want = given_images.bfloat16().double() @ unit_texts.bfloat16().double().T / lengths
    got = ops.cosines(given_images, texts, compute="bfloat16")
    # A text's element may round the other way where its length differs in the last bit.
    assert (got - want).abs().max() < 2e-4
    assert (got - want).abs().median() < 1e-6
    exact = ops.cosines(given_images, texts)
    assert (got - exact).abs().max() < 1e-2


def test_zero_vectors_have_no_direction(level):
    images, texts = clip_like(64, classes=5)
    images[1, 2] = 0
    texts[3] = 0
    for compute in ("float32", "bfloat16"):
        cosines = ops.cosines(images, texts, compute=compute)
        assert (cosines[1, 2] == 0).all() and (cosines[:, :, 3] == 0).all()
        assert np.isfinite(ops.aggregate_embeddings(images, texts, compute=compute)).all()


@pytest.mark.parametrize("aggregator", ops.AGGREGATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("view", [0, 1, 8])
def test_nan_spoils_its_photo_alone(level, aggregator, bad, view):
    cosines = random_cosines(1, 3, 9, 37)
    cosines[1, view, 20] = bad
    scores = ops.aggregate(cosines, aggregator=aggregator, zeta=0.4)
    read = aggregator != "global" or view == 0
    assert np.isnan(scores[1]).all() == read
    assert np.isfinite(scores[[0, 2]]).all()


def test_minus_infinity_takes_a_class_out(level):
    cosines = random_cosines(1, 2, 4, 21)
    cosines[:, :, 5] = -np.inf
    scores = ops.aggregate(cosines)
    assert (scores[:, 5] < 1e-15).all()
    kept = np.delete(np.arange(21), 5)
    np.testing.assert_allclose(
        scores[:, kept], reference.aggregate(cosines[:, :, kept]), rtol=0, atol=SCORE_TOLERANCE
    )


@pytest.mark.parametrize("aggregator", ops.AGGREGATORS)
def test_one_view_is_global(level, aggregator):
    cosines = random_cosines(1, 4, 1, 20)
    scores = ops.aggregate(cosines, aggregator=aggregator, zeta=0.9, lam=1.0)
    np.testing.assert_array_equal(scores, ops.aggregate(cosines, aggregator="global"))


@pytest.mark.parametrize("aggregator", ops.AGGREGATORS)
@pytest.mark.parametrize(("views", "classes"), [(2, 1), (10, 80), (16, 96), (17, 96), (16, 97)])
def test_a_photo_of_far_cosines_changes_no_neighbour(level, aggregator, views, classes):
    cosines = random_cosines(3, 9, views, classes)
    cosines[1] -= 3.0  # all far below its neighbours
    cosines[2, -1] += 0.9  # one view's softmax far above the first view's
    cosines[4] *= 4.0  # spread over more than a power of two can hold
    cosines[5, -1, -1] = -np.inf if classes > 1 else 0.0
    cosines[6] += 4e4  # whose exponents have no bits to spare for fractions
    cosines[7, 0] -= 0.9
    rule = {"aggregator": aggregator, "zeta": 0.3, "lam": 0.7}
    together = ops.aggregate(cosines, threads=1, **rule)
    check_scores(together, cosines, SCORE_TOLERANCE, **rule)
    alone = [ops.aggregate(cosines[i : i + 1], **rule) for i in range(len(cosines))]
    np.testing.assert_array_equal(np.concatenate(alone), together)


def test_threads_do_not_change_the_result(level):
    cosines = random_cosines(5, 70, 10, 80)
    images, texts = clip_like(256)
    one, two = (ops.aggregate(cosines, threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)
    one, two = (ops.aggregate_embeddings(images, texts, threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_result_follows_the_input():
    cosines = random_cosines(2, 3, 4, 5)
    assert isinstance(ops.aggregate(cosines), np.ndarray)
    tensor = torch.from_numpy(cosines).requires_grad_()
    result = ops.aggregate(tensor)
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float32
    np.testing.assert_array_equal(result.numpy(), ops.aggregate(cosines))


def test_strided_and_wider_inputs_are_converted():
    wide = np.random.default_rng(4).uniform(-0.2, 0.4, (6, 9, 4)).transpose(0, 2, 1)
    want = ops.aggregate(np.ascontiguousarray(wide, dtype=np.float32))
    np.testing.assert_array_equal(ops.aggregate(wide), want)
    np.testing.assert_array_equal(ops.aggregate(torch.from_numpy(wide)).numpy(), want)
    frozen = np.ascontiguousarray(wide, dtype=np.float32)
    frozen.flags.writeable = False
    np.testing.assert_array_equal(ops.aggregate(frozen), want)


@pytest.mark.parametrize("make", [np.empty, lambda s, dtype: torch.empty(s)])
def test_out_is_written_and_returned(make):
    cosines = random_cosines(2, 3, 4, 5)
    out = make((3, 5), dtype=np.float32)
    assert ops.aggregate(cosines, out=out) is out
    np.testing.assert_array_equal(np.asarray(out), ops.aggregate(cosines))


def test_nothing_beside_the_result_is_written(level):
    cosines = random_cosines(2, 5, 4, 19)
    around = np.full((7, 19), 3.0, dtype=np.float32)
    ops.aggregate(cosines, out=around[1:6])
    assert (around[[0, 6]] == 3).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"aggregator": "median"}, ValueError, "aggregator: got 'median', expected one of global"),
        ({"scale": 0.0}, ValueError, "scale: got 0.0"),
        ({"scale": float("nan")}, ValueError, "scale: got nan"),
        ({"zeta": 1.5}, ValueError, r"zeta: got 1.5, expected a number in \[0, 1\]"),
        ({"lam": -2}, ValueError, "lam: got -2"),
        ({"threads": 0}, ValueError, "threads: got 0"),
        ({"out": np.empty((3, 4), np.float32)}, ValueError, r"out: got shape \(3, 4\), expected \(3, 5\)"),
        ({"out": np.empty((3, 5))}, TypeError, "out: got float64"),
        ({"out": np.empty((5, 3), np.float32).T}, ValueError, "out: not contiguous"),
        ({"out": [0.0]}, TypeError, "out: got list"),
    ],
)
def test_wrong_calls_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        ops.aggregate(random_cosines(1, 3, 2, 5), **change)


@pytest.mark.parametrize(
    ("images", "texts", "error", "words"),
    [
        (np.ones((2, 3)), np.ones((4, 3)), ValueError, "images: got float64 of shape"),
        (np.ones((2, 3, 5)), np.ones((4, 3)), ValueError, "texts: got 3 dimensions an embedding, expected 5"),
        (np.ones((2, 0, 3)), np.ones((4, 3)), ValueError, "images: got no views"),
        (np.ones((2, 3, 0)), np.ones((4, 0)), ValueError, "images: got embeddings without dimensions"),
        (np.ones((2, 3, 4), np.int32), np.ones((4, 4)), TypeError, "images: got int32"),
    ],
)
def test_wrong_embeddings_are_named(images, texts, error, words):
    with pytest.raises(error, match=words):
        ops.aggregate_embeddings(images, texts)


def test_unknown_precision_is_refused():
    images, texts = clip_like(8)
    with pytest.raises(ValueError, match="compute: got 'int8'"):
        ops.cosines(images, texts, compute="int8")

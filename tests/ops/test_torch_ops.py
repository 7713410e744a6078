"""The ops inside torch.compile: whole graphs, the same numbers, any sizes, and sound registrations."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from cdul_fast import ops
from cdul_fast.ops import torch_ops

RULE = {"aggregator": "cdul", "scale": 20.0, "zeta": 0.3, "lam": 0.2}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).uniform(-0.2, 0.4, shape).astype(np.float32))


def photo(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8))


def compiled(call: Any, **options: Any) -> Any:
    return torch.compile(call, fullgraph=True, backend="eager", **options)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_aggregate_between_other_operations(backend):
    def call(cosines: torch.Tensor) -> torch.Tensor:
        return ops.aggregate(cosines * 0.5, **RULE).log()

    cosines = random(3, 5, 7)
    got = torch.compile(call, fullgraph=True, backend=backend)(cosines)
    torch.testing.assert_close(got, call(cosines), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_aggregate_embeddings_and_cosines(backend):
    def call(images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        into = torch.zeros(images.shape[0], images.shape[1], texts.shape[0])
        scores = ops.aggregate_embeddings(images, texts, cosines_out=into, **RULE)
        return scores, into + 1, ops.cosines(images, texts)

    images, texts = random(2, 5, 16), random(7, 16)
    got, want = torch.compile(call, fullgraph=True, backend=backend)(images, texts), call(images, texts)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(got[1] - 1, got[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("some_rows", [False, True])
def test_label_step_in_place(backend, some_rows):
    def call(latent: torch.Tensor, logits: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return ops.label_step(latent, logits * 2, rows=rows, sigma=0.4, step=0.5).sigmoid()

    rows = torch.tensor([4, 0, 2]) if some_rows else None
    latent, logits = random(6, 9), random(3 if some_rows else 6, 9)
    expected = latent.clone()
    want = call(expected, logits, rows)
    got = torch.compile(call, fullgraph=True, backend=backend)(latent, logits, rows)
    assert torch.equal(latent, expected) and torch.equal(got, want)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_crop_resize(backend):
    def call(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        boxes = [[0, 0, 0, 40, 30], [1, 2, 3, 20, 19]]
        fits = ["squash", "center_crop"]
        crops = ops.crop_resize(
            [first, second], boxes, 8, fit=fits, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1), dtype="bfloat16"
        )
        return crops + ops.crop_resize(first, torch.tensor([[0, 0, 9, 9], [1, 1, 30, 30]]), 8)

    given = photo(30, 40), photo(21, 33)
    got = torch.compile(call, fullgraph=True, backend=backend)(*given)
    assert torch.equal(got, call(*given))


def test_out_is_written_and_returned():
    def call(cosines: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return ops.aggregate(cosines, out=out)

    out = torch.zeros(2, 4)
    assert compiled(call)(random(2, 3, 4), out) is out
    assert torch.equal(out, ops.aggregate(random(2, 3, 4)))


def test_one_graph_for_all_sizes():
    compilations = 0

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        nonlocal compilations
        compilations += 1
        return graph.forward

    call = torch.compile(lambda x: ops.aggregate(x, **RULE), fullgraph=True, dynamic=True, backend=count)
    for shape in ((2, 3, 4), (5, 10, 80), (17, 65, 9)):
        assert torch.equal(call(random(*shape)), ops.aggregate(random(*shape), **RULE))
    assert compilations == 1


def test_a_wrong_setting_is_named():
    with pytest.raises(ValueError, match="zeta: got 2"):
        compiled(lambda x: ops.aggregate(x, zeta=2.0))(random(2, 3, 4))


def test_gradients_stop_as_they_do_without_compiling():
    cosines = random(2, 3, 4).requires_grad_()
    assert not ops.aggregate(cosines).requires_grad
    assert not compiled(lambda x: ops.aggregate(x))(cosines).requires_grad


def test_registrations_are_sound():
    rule = ("cdul", 20.0, 0.3, 0.2)
    images, texts = random(2, 5, 16), random(7, 16)
    boxes = torch.tensor([[0, 0, 0, 9, 9], [1, 1, 1, 12, 20]])
    calls = [
        (torch_ops.aggregate, (random(2, 3, 4), *rule, None)),
        (torch_ops.aggregate_embeddings, (images, texts, *rule, "float32", 1, None)),
        (
            torch_ops.aggregate_embeddings,
            (images.half(), texts, *rule, "float32", None, torch.zeros(2, 5, 7)),
        ),
        (torch_ops.cosines, (images, texts, "float32", None)),
        (torch_ops.label_step, (random(4, 5), random(4, 5), 0.4, 0.5, None, None)),
        (torch_ops.label_step, (random(4, 5), random(2, 5), 0.4, 0.5, torch.tensor([3, 1]), None)),
        (
            torch_ops.crop_resize,
            ([photo(9, 9), photo(20, 12)], boxes, 8, ["squash"], None, None, "float16", None),
        ),
    ]
    for op, arguments in calls:
        found = torch.library.opcheck(op, arguments)
        assert set(found.values()) == {"SUCCESS"}, (op, found)


def test_numpy_still_needs_no_torch():
    code = (
        "import sys, numpy as np\nfrom cdul_fast import ops\n"
        "ops.aggregate(np.zeros((2, 3, 4), np.float32))\n"
        "ops.label_step(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), sigma=0.4, step=0.5)\n"
        "ops.crop_resize(np.zeros((9, 9, 3), np.uint8), [[0, 0, 9, 9]], 4)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

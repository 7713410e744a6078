"""The label step where the network is: with the CPU as that device, the same labels as on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_train_command import config, largest_difference, weights

from cdul_fast import ops
from cdul_fast.training import runner
from cdul_fast.training.latent import LatentLabels, label_step_device

DEVICES = [
    torch.device("cpu"),
    pytest.param(
        torch.device("cuda"),
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


def sweep(latent: LatentLabels, device: torch.device) -> None:
    """Two updates over all rows, in batches whose order mixes them."""
    count, classes = latent.shape
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        latent.begin_update()
        for rows in torch.randperm(count, generator=generator).split(5):
            logits = torch.randn(len(rows), classes, generator=generator) * 3
            latent.move(rows.to(device), logits.to(device), sigma=0.4, step=0.3)
        latent.finish_update()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_device_gives_what_the_host_gives(device, on_disk, tmp_path):
    soft = np.random.default_rng(0).uniform(0, 1, (23, 7)).astype(np.float32)
    host = LatentLabels(soft, tmp_path / "host" if on_disk else None)
    there = LatentLabels(soft, tmp_path / "there" if on_disk else None, device=device)
    start = host.values.copy()
    sweep(host, torch.device("cpu"))
    sweep(there, device)
    assert there.version == host.version == 2
    assert not np.allclose(host.values, start, atol=1e-2)
    np.testing.assert_allclose(there.values, host.values, rtol=0, atol=1e-5)
    torch.testing.assert_close(there.rows(torch.tensor([3, 1])), host.rows(torch.tensor([3, 1])))


def test_a_process_moves_its_own_rows_alone():
    soft = np.full((10, 3), 0.3, np.float32)
    latent = LatentLabels(soft, rank=1, world=2, device=torch.device("cpu"))
    before = latent.values.copy()
    sweep(latent, torch.device("cpu"))
    np.testing.assert_array_equal(latent.values[:5], before[:5])
    assert (latent.values[5:] != before[5:]).all()


def test_train_takes_the_label_step_to_the_networks_device(toy_run, tmp_path, monkeypatch):
    """The command with the CPU as the GPU: the step gets tensors of the device, and the model is the same."""
    assert label_step_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert label_step_device(torch.device("cpu")) is None
    kinds: set[type] = set()
    step, asked = ops.label_step, []

    def seen(latent: Any, logits: Any, **more: Any) -> Any:
        kinds.add(type(latent))
        return step(latent, logits, **more)

    monkeypatch.setattr(ops, "label_step", seen)
    given = {"method": "cdul", "epochs": 3, "method_options": "warmup=1"}
    runner.train_on_run(config(toy_run, tmp_path / "host", **given))
    assert kinds == {np.memmap}
    kinds.clear()
    monkeypatch.setattr(runner, "label_step_device", lambda network: asked.append(network) or network)
    runner.train_on_run(config(toy_run, tmp_path / "device", **given))
    assert kinds == {torch.Tensor} and asked == [torch.device("cpu")]
    host, device = weights(tmp_path / "host"), weights(tmp_path / "device")
    assert largest_difference(host, device) < 1e-5

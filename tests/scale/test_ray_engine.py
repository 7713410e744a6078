"""The Ray engine on three simulated machines: the local engine's results, whatever is killed meanwhile.

The photos come from a server on this machine that holds back the second half of them until a test lets go, so
that what is killed is killed in the middle.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import stay_on_loopback
from PIL import Image
from servers import FileServer, serve

import cdul_fast

pytest.importorskip("ray")
pytest.importorskip("aiohttp")

# With 2,000 photos a test takes a minute or two on two idle cores.
LONGEST = 600
pytestmark = [pytest.mark.ray, pytest.mark.timeout(LONGEST)]

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ["path", "status", "error", "width", "height", "labels"]


def make_photos(folder: Path, count: int) -> None:
    """Small photos, no two alike."""
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((60 + i % 7, 50 + i % 5), Image.Resampling.BILINEAR)
        image.save(folder / f"{i:04d}.jpg", quality=90)


class World:
    """Photos behind a server, what the local engine made of them, and a cluster of three."""

    def __init__(self, folder: Path, server: FileServer, photos: int) -> None:
        self.folder, self.server, self.photos = folder, server, photos
        names = [f"{i:04d}.jpg" for i in range(photos)]
        names[3] = "gone.jpg"
        (folder / "list.txt").write_text("".join(f"{server.url}/{name}\n" for name in names))
        self.late = names[photos // 2 :]
        self.shard_size = max(20, photos // 40)
        self.joined = folder / "joined.txt"

    def start(self, out: str, *arguments: str) -> subprocess.Popen[str]:
        given = ["--list", str(self.folder / "list.txt"), "--model", "tiny", "--out", str(self.folder / out)]
        given += ["--shard-size", str(self.shard_size), "--batch-size", "4", "--threads", "1", "--no-report"]
        # A photo that is held back is not slow, however long the rest takes on a busy machine.
        given += ["--read-timeout", str(LONGEST), "--photo-timeout", str(LONGEST)]
        program = [
            sys.executable,
            str(Path(__file__).parent / "loopback.py"),
            str(self.joined),
            *given,
            *arguments,
        ]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_BACKEND_LOG_LEVEL": "fatal"}
        return subprocess.Popen(
            program, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder
        )

    def finish(self, process: subprocess.Popen[str]) -> str:
        _, stderr = process.communicate(timeout=LONGEST)
        assert process.returncode == 0, stderr
        return stderr

    def check(self, out: str) -> None:
        """Every row of the local run, once, and the same numbers."""
        run, local = (cdul_fast.open_run(self.folder / name) for name in (out, "local"))
        assert not run.missing_shards
        assert run.table(COLUMNS).to_pylist() == local.table(COLUMNS).to_pylist()
        assert run.table(["status"]).column("status").to_pylist().count("ok") == self.photos - 1
        np.testing.assert_array_equal(run.scores()[1], local.scores()[1])
        for shard, other in zip(run.shards, local.shards, strict=True):
            np.testing.assert_array_equal(shard.cosines(), other.cosines())
            np.testing.assert_array_equal(shard.embeddings(), other.embeddings())
        assert run.info["finished"]
        assert {"read", "decode", "crop", "encode", "aggregate", "write"} <= run.info["stages"].keys()
        left = [path.name for path in run.path.iterdir() if path.name.startswith((".tmp", "journal"))]
        assert left == []

    def hold(self) -> None:
        self.server.held = set(self.late)
        self.server.released.clear()

    def let_go(self) -> None:
        self.server.released.set()

    def wait_until_held(self, process: subprocess.Popen[str]) -> None:
        """Until photos of the second half are asked for, and a shard of the first is complete."""
        self.wait(process, lambda: any(self.server.hits[name] for name in self.late))

    def wait(self, process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
        end = time.monotonic() + LONGEST / 2
        while not ready():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("ray")
    photos = int(request.config.getoption("--photos"))
    make_photos(folder / "photos", photos)
    with serve(folder / "photos") as server:
        made = World(folder, server, photos)
        made.finish(made.start("local"))
        yield made


@pytest.fixture(autouse=True)
def fresh_server(world: World) -> Iterator[None]:
    world.server.hits.clear()
    yield
    world.server.held = set()
    world.let_go()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    stay_on_loopback()
    # The workers of the cluster are its children, not those of the command.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    # A lost machine is noticed in seconds, not in half a minute.
    quick = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
    made = Cluster(initialize_head=True, head_node_args={**node, "_system_config": quick})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=100 << 20)
        yield made
    finally:
        made.shutdown()
        monkeypatch.undo()


def on_cluster(world: World, cluster: Any, out: str) -> subprocess.Popen[str]:
    return world.start(out, "--engine", "ray", "--address", cluster.address)


def workers(node: Any, kind: str) -> list[int]:
    """Processes of one simulated machine that run tasks or actors of this kind."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_text()
        except (OSError, ValueError, IndexError):
            continue
        if parent == raylet and kind in title:
            found.append(int(folder.name))
    return found


def test_the_same_rows_as_the_local_engine(world: World, cluster: Any) -> None:
    world.finish(on_cluster(world, cluster, "equal"))
    world.check("equal")
    counts = cdul_fast.open_run(world.folder / "equal").info["counts"]
    assert counts == {"missing": 1, "ok": world.photos - 1}


def test_workers_are_killed(world: World, cluster: Any) -> None:
    world.hold()
    process = on_cluster(world, cluster, "killed")
    world.wait_until_held(process)
    nodes = [cluster.head_node, *cluster.worker_nodes]
    found = [
        [pid for node in nodes for pid in workers(node, kind)] for kind in ("read_block", "EncodeBlocks")
    ]
    assert all(found), f"tasks and actors under way: {found}"
    for pids in found:
        os.kill(pids[0], signal.SIGKILL)
    world.let_go()
    world.finish(process)
    world.check("killed")


def test_a_machine_is_lost(world: World, cluster: Any) -> None:
    world.hold()
    process = on_cluster(world, cluster, "lost")
    world.wait_until_held(process)
    # Not the machine by which the command takes part itself.
    joined = world.joined.read_text()
    others = [node for node in cluster.worker_nodes if node.raylet_socket_name != joined]
    lost = max(others, key=lambda node: len(workers(node, "ray::Map")))
    assert workers(lost, "ray::Map"), "it does some of the work"
    cluster.remove_node(lost, allow_graceful=False)
    world.let_go()
    world.finish(process)
    world.check("lost")
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)


def test_interrupted_keeps_what_was_finished(world: World, cluster: Any) -> None:
    world.hold()
    process = on_cluster(world, cluster, "stopped")
    world.wait_until_held(process)
    world.wait(process, lambda: any((world.folder / "stopped").glob("labels-*.parquet")))
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 143, stderr
    assert "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    world.let_go()
    # An engine goes on with what another began.
    stderr = world.finish(world.start("stopped"))
    assert "kept" in stderr
    world.check("stopped")


# The last one on the cluster: for half a minute Ray keeps for a killed command what it had claimed, and until
# then another gets one task at a time.


def test_the_command_itself_is_killed(world: World, cluster: Any) -> None:
    world.hold()
    process = on_cluster(world, cluster, "again")
    world.wait_until_held(process)
    done = world.folder / "again"
    world.wait(process, lambda: any(done.glob("labels-*.parquet")))
    process.kill()
    process.communicate()
    # The labels are settled at the end, so their files are written anew; the views are not.
    first = done / next(done.glob("labels-*.parquet")).name.replace("labels", "views").replace(
        "parquet", "safetensors"
    )
    before = first.stat().st_mtime_ns
    world.let_go()
    stderr = world.finish(on_cluster(world, cluster, "again"))
    assert int(stderr.split("kept ")[1].split()[0]) >= world.shard_size
    assert first.stat().st_mtime_ns == before, "a complete shard is left alone"
    world.check("again")


def test_no_cluster_there(world: World) -> None:
    process = world.start("none", "--engine", "ray", "--address", "nowhere:1x")
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 2, stderr
    assert "no Ray cluster there" in stderr
    assert len(stderr.splitlines()) == 1

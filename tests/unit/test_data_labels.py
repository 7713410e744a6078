"""Reading a labels file: all of it, in the order asked for, without what it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cdul_fast.data.run_dir import Shard
from cdul_fast.data.sinks import ShardData, labels_path, views_path, write_shard
from cdul_fast.errors import CdulError


def shard(folder: Path, rows: int) -> Shard:
    """A shard of ``rows`` photos, every seventh of them missing."""
    ok = np.arange(rows) % 7 != 3
    rng = np.random.default_rng(rows)
    data = ShardData(
        paths=[f"{row}.jpg" for row in range(rows)],
        status=["ok" if row else "missing" for row in ok],
        error=[None if row else "gone" for row in ok],
        width=np.full(rows, 4, np.int32),
        height=np.full(rows, 3, np.int32),
        scores=rng.random((int(ok.sum()), 5), np.float32),
        labels=[["a"] * bool(row) for row in ok],
        cosines=rng.random((int(ok.sum()), 2, 5), np.float32),
        embeddings=None,
    )
    write_shard(folder, "00000", data, classes=list("abcde"), config={})
    return Shard("00000", labels_path(folder, "00000"), views_path(folder, "00000"))


@pytest.mark.parametrize("rows", [0, 1, 128, 129, 1000])
def test_any_number_of_rows(tmp_path: Path, rows: int) -> None:
    import pyarrow.parquet as pq

    written = shard(tmp_path, rows)
    expected = pq.read_table(written.labels_path)
    assert written.table().equals(expected)
    assert written.table().schema.metadata == expected.schema.metadata
    some = written.table(["scores", "path"])
    assert some.schema.names == ["scores", "path"] and some.equals(expected.select(["scores", "path"]))


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CdulError, match="speed"):
        shard(tmp_path, 3).table(["path", "speed"])


def test_arrows_data_sets_stay_unloaded(tmp_path: Path) -> None:
    """They take 20 MiB and half a second."""
    path = shard(tmp_path, 3).labels_path
    code = (
        "import sys; from pathlib import Path; from cdul_fast.data.run_dir import Shard; "
        f"Shard('', Path({str(path)!r}), Path()).table(); assert 'pyarrow.dataset' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

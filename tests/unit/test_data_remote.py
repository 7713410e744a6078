"""Sources behind URLs, read from servers on this machine."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gs_server import gs_bucket
from s3_server import folder_files, s3_bucket
from servers import FileServer, serve

from cdul_fast.data import remote as remote_module
from cdul_fast.data.decode import PhotoProblem
from cdul_fast.data.remote import Remote, is_url
from cdul_fast.data.source import Source
from cdul_fast.data.sources import open_source
from cdul_fast.errors import CdulError, ConfigError

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same photos as files, tar files, Parquet with bytes, Parquet with paths, CSV and list."""
    folder = tmp_path / "files"
    for name in ("a/one.jpg", "a/two words.png", "b.JPG", "note.txt"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).write_bytes(f"photo {name}".encode())
    (folder / "photos" / "empty.jpg").touch()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for i in range(3):
                for suffix in ("jpg", "json"):
                    member = tarfile.TarInfo(f"{i}.{suffix}")
                    data = f"shard {shard} photo {i}".encode()
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": f"row {i}".encode(), "path": f"{i}.jpg"} for i in range(5)]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), folder / "held.parquet", row_group_size=2)
    pq.write_table(pa.table({"path": ["photos/b.JPG", "photos/a/one.jpg"]}), folder / "named.parquet")
    (folder / "table.csv").write_text("image,labels\nphotos/b.JPG,dog\nphotos/none.jpg,cat\n")
    return folder


@pytest.fixture
def http(files: Path) -> Iterator[FileServer]:
    with serve(files) as server:
        yield server


@pytest.fixture(params=[s3_bucket, gs_bucket])
def bucket(request: pytest.FixtureRequest, files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with request.param("bucket", folder_files(files), monkeypatch) as url:
        yield url


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "_FIRST_DELAY", 0.001)


def contents(source: Source) -> list[bytes]:
    """All photos, read by a copy as another process would have it."""
    copied = pickle.loads(pickle.dumps(source))
    return [copied.read(i) for i in range(len(copied))]


def problem(source: Source, index: int) -> PhotoProblem:
    with pytest.raises(PhotoProblem) as caught:
        source.read(index)
    return caught.value


def check_archives_and_tables(base: str) -> None:
    tars = open_source(f"{base}/{{000..001}}.tar")
    assert list(tars.names) == [f"{s:03d}.tar/{i}.jpg" for s in range(2) for i in range(3)]
    assert (tars.kind, tars.place) == ("webdataset", base)
    assert contents(tars) == [f"shard {s} photo {i}".encode() for s in range(2) for i in range(3)]
    assert contents(tars.narrowed(2, 5)) == contents(tars)[2:5]
    held = open_source(f"{base}/held.parquet")
    assert list(held.names) == [f"held.parquet#{i}" for i in range(5)]
    assert contents(held) == [f"row {i}".encode() for i in range(5)]
    named = open_source(f"{base}/named.parquet")
    assert contents(named) == [b"photo b.JPG", b"photo a/one.jpg"]
    table = open_source(f"{base}/table.csv")
    assert (table.place, table.classes) == (base, ("cat", "dog"))
    assert table.read(0) == b"photo b.JPG"
    missing = problem(table, 1)
    assert (missing.status, "no such file" in missing.error) == ("missing", True)


def test_a_bucket(bucket: str) -> None:
    source = open_source(f"{bucket}/photos")
    assert list(source.names) == ["a/one.jpg", "a/two words.png", "b.JPG", "empty.jpg"]
    assert (source.place, source.read(1)) == (f"{bucket}/photos", b"photo a/two words.png")
    assert problem(source, 3).status == "decode_error"
    assert list(open_source(f"{bucket}/photos/a/*.jpg").names) == ["one.jpg"]
    assert contents(open_source(f"{bucket}/photos/b.JPG")) == [b"photo b.JPG"]
    assert len(open_source(f"{bucket}/*.tar")) == 6
    check_archives_and_tables(bucket)


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    for url in (f"{bucket}/none.tar", f"{bucket}/none.parquet"):
        with pytest.raises(CdulError, match="no such file"):
            open_source(url)
    with pytest.raises(CdulError, match=r"no such file|not exist"):
        open_source(bucket.replace("bucket", "no-such-bucket/photos"))


def test_http(http: FileServer) -> None:
    check_archives_and_tables(http.url)
    assert contents(open_source(f"{http.url}/photos/b.JPG")) == [b"photo b.JPG"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_https(files: Path, tmp_path: Path, root: Path) -> None:
    """Only a server whose certificate is trusted is read from."""
    key, certificate, both = (tmp_path / name for name in ("key.pem", "certificate.pem", "both.pem"))
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    code = (
        "import sys; from cdul_fast.data.remote import Remote\n"
        "from cdul_fast.data.sources import open_source\n"
        "print(open_source(sys.argv[1], remote=Remote(retries=0)).read(0))"
    )
    with serve(files, both) as server:
        asked = [sys.executable, "-c", code, f"{server.url}/photos/b.JPG"]
        for trusted, answer in ((certificate, "b'photo b.JPG'\n"), (key, "")):
            # Read when the client is loaded, hence another process.
            environment = {**os.environ, "SSL_CERT_FILE": str(trusted)}
            done = subprocess.run(
                asked, cwd=root, env=environment, capture_output=True, text=True, timeout=60
            )
            assert done.stdout == answer, done.stderr
        assert "CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_a_list_of_urls_and_files(http: FileServer, files: Path, tmp_path: Path) -> None:
    wanted = f"{http.url}/photos/b.JPG\n{files}/photos/a/one.jpg\nfile://{files}/photos/b.JPG\n"
    (tmp_path / "list.txt").write_text(wanted)
    source = open_source(None, list_file=str(tmp_path / "list.txt"))
    assert contents(source) == [b"photo b.JPG", b"photo a/one.jpg", b"photo b.JPG"]
    (files / "remote.txt").write_text("a/one.jpg\nb.JPG\n")
    source = open_source(None, list_file=f"{http.url}/remote.txt", images=f"{http.url}/photos")
    assert (source.place, list(source.names)) == (f"{http.url}/photos", ["a/one.jpg", "b.JPG"])
    assert contents(source) == [b"photo a/one.jpg", b"photo b.JPG"]
    with pytest.raises(ConfigError, match="--list"):
        open_source(None, list_file=f"{http.url}/none.txt")


def test_a_server_that_fails_for_a_while(http: FileServer) -> None:
    source = open_source(f"{http.url}/photos/b.JPG", remote=Remote(retries=2))
    http.failures["photos/b.JPG"] = 2
    assert source.read(0) == b"photo b.JPG"
    assert http.hits["photos/b.JPG"] == 3
    http.failures["photos/b.JPG"] = 3
    failed = problem(source, 0)
    assert failed.status == "missing"
    assert "503" in failed.error


def test_what_is_not_there_is_asked_for_once(http: FileServer) -> None:
    assert "no such file" in problem(open_source(f"{http.url}/photos/none.jpg"), 0).error
    assert http.hits["photos/none.jpg"] == 1


def test_a_server_that_does_not_answer(http: FileServer) -> None:
    http.delays["photos/b.JPG"] = 2.0
    source = open_source(f"{http.url}/photos/b.JPG", remote=Remote(timeout=0.2, retries=1))
    assert "in time" in problem(source, 0).error
    assert http.hits["photos/b.JPG"] == 2


def test_no_more_is_taken_than_a_photo_may_have(http: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "MAX_FILE_BYTES", 5)
    assert problem(open_source(f"{http.url}/photos/b.JPG"), 0).status == "too_large"


def test_a_server_that_sends_no_parts(http: FileServer) -> None:
    http.ranges = False
    assert contents(open_source(f"{http.url}/photos/b.JPG")) == [b"photo b.JPG"]
    with pytest.raises(CdulError, match="cannot send a part"):
        open_source(f"{http.url}/000.tar")


def test_which_urls_are_read(tmp_path: Path) -> None:
    assert [is_url(t) for t in ("s3://b/x", "c:\\x", "c://x", "a/s3:/b", "photos")] == [True] + [False] * 4
    for url in ("ftp://host/x.jpg", "zip://a.jpg::https://host/x.zip", "s3://b/*.tar::file:///x"):
        with pytest.raises(ConfigError, match="URL of s3, gs, https"):
            Remote().size(url)
    (tmp_path / "list.txt").write_text("github://owner:repo@main/a.jpg\n")
    source = open_source(None, list_file=str(tmp_path / "list.txt"))
    assert problem(source, 0).status == "missing"
    with pytest.raises(ConfigError, match="read from a folder"):
        open_source("s3://bucket/x", format="voc")
    with pytest.raises(ConfigError, match="use --list"):
        open_source("s3://bucket/list.txt")


def test_a_local_folder_by_its_url(files: Path) -> None:
    source = open_source(f"file://{files}/photos")
    assert (source.kind, source.root) == ("folder", files / "photos")

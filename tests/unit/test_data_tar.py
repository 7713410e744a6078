"""Tar files as a source: order, keys, what is passed over, what is damaged."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import pytest

from cdul_fast.data.decode import PhotoProblem
from cdul_fast.data.manifest import inputs_digest
from cdul_fast.data.sources import open_source
from cdul_fast.data.tar_shards import expand_braces
from cdul_fast.errors import ConfigError


def add(archive: tarfile.TarFile, name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.type = kind
    if kind == tarfile.REGTYPE:
        member.size = len(data)
    elif kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        member.linkname = "/etc/passwd"
    archive.addfile(member, io.BytesIO(data) if kind == tarfile.REGTYPE else None)


def make_tar(path: Path, names: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            add(archive, name, f"{path.stem} {name}".encode())
    return path


def refusal(source: object, **settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        open_source(str(source), **settings)
    return str(caught.value)


def test_braces_mean_what_the_shell_makes_of_them() -> None:
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert expand_braces("plain") == ["plain"]
    assert expand_braces("{one}") == ["{one}"]
    for bad, why in (
        ("{5..3}", "backwards"),
        ("{0..999999999}", "more than"),
        ("{0..9999}{0..9999}", "more"),
    ):
        with pytest.raises(ConfigError, match=why):
            expand_braces(bad)


def test_photos_keep_their_key_and_their_order(tmp_path: Path) -> None:
    make_tar(tmp_path / "s" / "000.tar", ["b.jpg", "b.json", "b.txt", "a/one.left.png", "a/one.cls"])
    make_tar(tmp_path / "s" / "001.tar", ["b.jpg", "b.cls"])
    wanted = ["000.tar/b.jpg", "000.tar/a/one.left.png", "001.tar/b.jpg"]
    for spelled in ("{000..001}.tar", "*.tar"):
        source = open_source(str(tmp_path / "s" / spelled))
        assert list(source.names) == wanted
    source = open_source(str(tmp_path / "s"), format="webdataset")
    assert (source.kind, source.root, list(source.names)) == ("webdataset", tmp_path / "s", wanted)
    assert [source.read(i) for i in range(3)] == [b"000 b.jpg", b"000 a/one.left.png", b"001 b.jpg"]
    assert list(open_source(str(tmp_path / "s" / "001.tar")).names) == ["001.tar/b.jpg"]


def test_parts_and_copies_read_the_same(tmp_path: Path) -> None:
    for number in range(3):
        make_tar(tmp_path / f"{number}.tar", [f"{i}.jpg" for i in range(4)])
    source = open_source(str(tmp_path / "{0..2}.tar"))
    part = source.narrowed(5, 9)
    copied = pickle.loads(pickle.dumps(part.narrowed(1, 4)))
    assert [copied.read(i) for i in range(3)] == [source.read(i) for i in range(6, 9)]
    assert len(copied.reader.files) == 2, "a part carries only the files it needs"
    assert pickle.loads(pickle.dumps(source.narrowed(3, 3))).names == []


def test_what_leads_out_of_the_archive_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name in ("../up.jpg", "/etc/abs.jpg", "a/../../b.jpg", "ok.jpg"):
            add(archive, name)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            add(archive, f"kind{kind.decode()}.jpg", kind=kind)
        add(archive, "folder.jpg", kind=tarfile.DIRTYPE)
    source = open_source(str(tmp_path / "evil.tar"))
    assert list(source.names) == ["evil.tar/ok.jpg"]
    assert "8 members passed over" in caplog.text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evil.tar"], "nothing was unpacked"


@pytest.mark.parametrize("cut", [700, 1500, 2048, 2900, 3072 + 100])
def test_a_cut_archive_says_so_in_a_row(tmp_path: Path, cut: int) -> None:
    whole = make_tar(tmp_path / "w" / "a.tar", [f"{i}.jpg" for i in range(4)]).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    make_tar(tmp_path / "b.tar", ["z.jpg"])
    source = open_source(str(tmp_path / "*.tar"))
    sound = sum(512 + 1024 * number + len("a 0.jpg") <= cut for number in range(4))
    assert list(source.names) == [f"a.tar/{i}.jpg" for i in range(sound)] + ["a.tar", "b.tar/z.jpg"]
    with pytest.raises(PhotoProblem) as problem:
        source.read(sound)
    assert problem.value.status == "decode_error"
    assert "damaged" in problem.value.error
    assert source.read(sound + 1) == b"b z.jpg"


def test_a_damaged_header_in_the_middle_says_so_in_a_row(tmp_path: Path) -> None:
    data = bytearray(make_tar(tmp_path / "a.tar", ["0.jpg", "1.jpg", "2.jpg"]).read_bytes())
    data[1024 + 148] ^= 0xFF  # the checksum of the second header
    (tmp_path / "a.tar").write_bytes(data)
    assert list(open_source(str(tmp_path / "a.tar")).names) == ["a.tar/0.jpg", "a.tar"]


def test_a_header_that_leads_backwards_ends_the_search(tmp_path: Path) -> None:
    data = bytearray(make_tar(tmp_path / "a.tar", ["0.jpg", "1.jpg"]).read_bytes())
    header = data[1024:1536]
    header[124:136] = b"\xff" * 8 + (-1024).to_bytes(4, "big", signed=True)  # a size of -1024 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    (tmp_path / "a.tar").write_bytes(data)
    assert open_source(str(tmp_path / "a.tar")).names[0] == "a.tar/0.jpg"


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("words " * 500)
    assert "not a tar file" in refusal(tmp_path / "text.tar")
    (tmp_path / "empty.tar").touch()
    assert "not a tar file" in refusal(tmp_path / "empty.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        add(archive, "a.jpg")
    assert "compressed" in refusal(tmp_path / "packed.tar")
    assert "No such file" in refusal(tmp_path / "{0..1}.tar")
    assert "no *.tar" in refusal(tmp_path / "none*.tar")
    assert "--split" in refusal(tmp_path / "text.tar", split="train")


def test_an_emptied_photo_has_a_row(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "none.jpg", b"")
        add(archive, "some.jpg", b"12345")
    source = open_source(str(tmp_path / "a.tar"))
    with pytest.raises(PhotoProblem, match="empty"):
        source.read(0)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: 512 * 2 + 3])
    with pytest.raises(PhotoProblem, match="ends within this photo"):
        source.read(1)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(PhotoProblem, match="No such file"):
        source.read(1)


def test_other_contents_are_another_source(tmp_path: Path) -> None:
    first = open_source(str(make_tar(tmp_path / "a.tar", ["0.jpg", "1.jpg"])))
    digest = inputs_digest(first)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.jpg", b"longer than before")
        add(archive, "1.jpg")
    second = open_source(str(tmp_path / "a.tar"))
    assert first.names == second.names
    assert inputs_digest(second) != digest

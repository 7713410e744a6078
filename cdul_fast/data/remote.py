"""Reading what lies behind a URL (s3://, gs://, https://) through fsspec, with a timeout and retries."""

from __future__ import annotations

import dataclasses
import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cdul_fast.data.decode import MAX_FILE_BYTES, PhotoProblem, is_photo_name
from cdul_fast.data.paths import one_line, show_path
from cdul_fast.errors import CdulError, ConfigError

T = TypeVar("T")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# fsspec knows many more; those that run commands, chain archives or read other programs' files are left out
# on purpose, for a list of photos may come from anywhere.
_SCHEMES = ("s3", "gs", "https", "http")
_FIRST_DELAY = 0.5
_BLOCK_BYTES = 256 << 10
# Answers of a server that may be another one a moment later.
_PASSING = frozenset({408, 425, 429})


def is_url(text: str) -> bool:
    """Whether a source is named by a URL; one letter before the colon would be a drive."""
    match = _URL.match(text)
    return match is not None and len(match[1]) > 1


def local_path(text: str) -> str:
    """``file:///a/b`` as the path it means; anything else as it is."""
    return text.removeprefix("file://") if text.startswith("file:///") else text


def join_url(base: str, name: str) -> str:
    """The URL of ``name`` below ``base``."""
    return f"{base.rstrip('/')}/{name}"


@dataclasses.dataclass(frozen=True)
class Remote:
    """How URLs are read.

    Attributes:
        timeout: Seconds that one attempt may take.
        retries: Attempts after the first, each after twice the wait of the one before.
    """

    timeout: float = 15.0
    retries: int = 4

    def read_photo(self, url: str) -> bytes:
        """The bytes of one photo.

        Raises:
            PhotoProblem: It cannot be read; says why.
        """
        return self.photo(lambda: self._whole(url, MAX_FILE_BYTES))

    def photo(self, read: Callable[[], bytes]) -> bytes:
        """What ``read`` gives, its failures as the status of a photo.

        Raises:
            PhotoProblem: It cannot be read; says why.
        """
        try:
            data = read()
        except _TooLarge as error:
            raise PhotoProblem("too_large", str(error)) from None
        except CdulError as error:
            raise PhotoProblem("missing", str(error)) from None
        if not data:
            raise PhotoProblem("decode_error", "the file is empty")
        return data

    def read_file(self, url: str) -> bytes:
        """The whole of a small file, such as a list.

        Raises:
            CdulError: It cannot be read.
        """
        return self._whole(url, MAX_FILE_BYTES)

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start`` on; fewer only at the end of the file.

        Raises:
            CdulError: They cannot be read.
        """

        def read() -> bytes:
            system, path = _open(url)
            if _speaks_http(url):
                return bytes(self._run(system, _http_bytes, system, path, start, length))
            return bytes(self._call(system, "cat_file", path, start=start, end=start + length))

        return self._retried(url, read) if length else b""

    def size(self, url: str) -> int:
        """Length of a file in bytes.

        Raises:
            CdulError: There is none, or the server does not say.
        """

        def ask() -> int:
            system, path = _open(url)
            size = self._call(system, "info", path).get("size")
            if size is None:
                raise ValueError("the server does not say how long the file is")
            return int(size)

        return self._retried(url, ask)

    def file(self, url: str) -> io.BufferedReader:
        """A file to read and seek in; only what is read is transferred.

        Raises:
            CdulError: There is none.
        """
        return io.BufferedReader(_RangeFile(self, url, self.size(url)), _BLOCK_BYTES)

    def write(self, url: str, data: bytes | Path) -> None:
        """Write a file, whole or not at all where the server can.

        Args:
            url: Where to.
            data: Its content, or a file of this machine.

        Raises:
            CdulError: It cannot be written.
        """

        def put() -> None:
            system, path = _open(url)
            if isinstance(data, Path):
                # Its time is that of its size, so no limit is set.
                system.put_file(str(data), path)
            else:
                self._call(system, "pipe_file", path, data)

        self._retried(url, put)

    def exists(self, url: str) -> bool:
        """Whether there is such a file.

        Raises:
            CdulError: The server cannot be asked.
        """

        def ask() -> bool:
            system, path = _open(url)
            return bool(self._call(system, "exists", path))

        return self._retried(url, ask)

    def find(self, url: str, pattern: bool = False) -> list[str]:
        """URLs of all files below ``url``, or of those that match it as a pattern; sorted.

        Raises:
            CdulError: It cannot be listed.
        """

        def ask() -> list[str]:
            system, path = _open(url)
            found = self._call(system, "glob" if pattern else "find", path)
            return sorted(system.unstrip_protocol(name) for name in found)

        return self._retried(url, ask)

    def find_photos(self, url: str) -> list[str]:
        """Names of all photos below ``url``, relative to it; sorted."""
        base = join_url(url, "")
        found = [name.removeprefix(base) for name in self.find(url) if name.startswith(base)]
        return [name for name in found if is_photo_name(name)]

    def _whole(self, url: str, limit: int) -> bytes:
        def read() -> bytes:
            system, path = _open(url)
            if _speaks_http(url):
                data = bytes(self._run(system, _http_bytes, system, path, 0, limit + 1))
            else:
                size = int(self._call(system, "info", path)["size"])
                data = b"" if size > limit else bytes(self._call(system, "cat_file", path))
                if size > limit:
                    raise _TooLarge(f"a file of {size} bytes")
            if len(data) > limit:
                raise _TooLarge(f"a file of more than {limit} bytes")
            return data

        return self._retried(url, read)

    def _call(self, system: Any, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of a file system, within the timeout where the file system can be held to one."""
        if getattr(system, "async_impl", False):
            return self._run(system, getattr(system, f"_{method}"), *arguments, **named)
        return getattr(system, method)(*arguments, **named)

    def _run(self, system: Any, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        from fsspec.asyn import sync

        return sync(system.loop, call, *arguments, timeout=self.timeout, **named)

    def _retried(self, url: str, work: Callable[[], T]) -> T:
        for attempt in range(self.retries + 1):
            try:
                return work()
            except CdulError:
                raise
            except Exception as error:
                if attempt == self.retries or _is_final(error):
                    raise CdulError(f"{show_path(url)}: {_reason(error)}") from None
            time.sleep(_FIRST_DELAY * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


class _TooLarge(CdulError):
    """More bytes than a photo may have."""


class _RangeFile(io.RawIOBase):
    """A file behind a URL, read in ranges."""

    def __init__(self, remote: Remote, url: str, size: int) -> None:
        self._remote, self._url, self._size, self._at = remote, url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(0, self._size - self._at))
        data = self._remote.read_range(self._url, self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


async def _http_bytes(system: Any, url: str, start: int, length: int) -> bytes:
    """Bytes of an HTTP file; never more than asked for, however much the server sends."""
    whole = start == 0 and length > MAX_FILE_BYTES
    headers = {} if whole else {"Range": f"bytes={start}-{start + length - 1}"}
    session = await system.set_session()
    async with session.get(system.encode_url(url), headers=headers) as answer:  # follows redirects
        if answer.status == 404:
            raise FileNotFoundError(url)
        answer.raise_for_status()
        if not whole and answer.status != 206:
            raise ValueError("the server cannot send a part of a file")
        data = bytearray()
        async for chunk in answer.content.iter_chunked(1 << 20):
            data += chunk
            if len(data) >= length:
                break
        return bytes(data[:length])


def _speaks_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it.

    Raises:
        ConfigError: A kind of URL that is not read, or its library is absent.
    """
    match = _URL.match(url)
    scheme = match[1].lower() if match else ""
    if scheme not in _SCHEMES or "::" in url:
        raise ConfigError(f"{show_path(url)}: wants a path, or a URL of {', '.join(_SCHEMES)}")
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        raise ConfigError(
            f"{show_path(url)}: {one_line(str(error), 120)}; pip install 'cdul_fast[remote]'"
        ) from None
    return system, str(path)


def _is_final(error: Exception) -> bool:
    """Whether another attempt would only fail again."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING
    return isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | ValueError)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"the server answers {status}"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "no answer in time"
    return one_line(str(error) or type(error).__name__, 200)

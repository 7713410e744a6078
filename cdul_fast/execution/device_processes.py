"""A run over several devices: one process a device, each with one of as many equal parts of the source.

The parts are those of ``--shard``: their files, locks, journals and resume. A reader of the run directory
sees one run. The calling process shows one progress line and tells what became of the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from cdul_fast.config import LabelConfig
from cdul_fast.data.gpu_decode import has_gpu_decoder
from cdul_fast.data.lock import locked
from cdul_fast.data.paths import show_path
from cdul_fast.data.run_removal import delete_run
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.execution.local_engine import available_cores
from cdul_fast.progress import Progress

# A part that was told to end flushes its journal first; one that hangs in a driver never does.
_SECONDS_TO_END = 30.0


@dataclasses.dataclass
class PartSummary:
    """What all parts did together."""

    kept: int
    images_per_second: float
    limiting_stage: str


class _Part:
    """One process and what is known of it."""

    def __init__(self, number: int, device: str, config: LabelConfig, command: Sequence[str]) -> None:
        self.number, self.device = number, device
        self.start: dict[str, Any] | None = None
        self.result: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C reaches this process alone, which passes it on once: twice would cut the flush short.
            start_new_session=True,
        )
        try:
            with _writing_end(self.process) as stream:
                json.dump(config.to_dict(), stream)
        except BrokenPipeError:
            pass  # it ended before it read; its exit code will tell

    def failure(self) -> str | None:
        """What went wrong, once the process has ended; None if nothing."""
        code = self.process.returncode
        if self.error is not None:
            return str(self.error["text"]) or str(self.error["type"])
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        if self.result is None or code != 0:
            return f"ended with code {code} and no result"
        return None


@contextlib.contextmanager
def _writing_end(process: subprocess.Popen[str]) -> Iterator[IO[str]]:
    assert process.stdin is not None
    with process.stdin as stream:
        yield stream


def label_on(
    config: LabelConfig, devices: Sequence[str], command: Sequence[str] | None = None
) -> PartSummary:
    """Run all parts and wait for them.

    A part that fails does not end the others: what they do is kept.

    Args:
        config: The settings of the whole run.
        devices: One a process, as ``--device`` names single ones.
        command: What starts a process; by default ``python -m cdul_fast.execution.label_process``.

    Raises:
        ConfigError: The source is standard input, or all parts refuse the settings.
        CdulError: A part failed; names each with its device and its reason.
        KeyboardInterrupt: After all parts brought to disk what they had finished.
    """
    if config.list == "-":
        raise ConfigError("--list - cannot be read by several processes: save the list to a file")
    if command is None:
        command = (sys.executable, "-m", "cdul_fast.execution.label_process")
    messages: queue.Queue[tuple[_Part, dict[str, Any] | None]] = queue.Queue()
    parts: list[_Part] = []
    # Each part would try both decoders for itself, while the others work, and might choose another.
    decode = config.decode
    if decode == "auto":
        decode = "gpu" if has_gpu_decoder() and devices[0] != "cpu" else "cpu"
    if config.overwrite:
        _delete(config, len(devices))
    start = time.monotonic()
    try:
        for number, device in enumerate(devices, start=1):
            own = dataclasses.replace(
                config,
                device=device,
                shard=f"{number}/{len(devices)}",
                decode=decode,
                threads=config.threads or max(1, available_cores() // len(devices)),
                overwrite=False,
                quiet=True,
            )
            part = _Part(number, device, own, command)
            parts.append(part)
            threading.Thread(target=_listen, args=(part, messages), daemon=True).start()
        processed = _follow(config, parts, messages)
    except KeyboardInterrupt as error:
        _end(parts)
        raise type(error)(
            f"what was finished is in {show_path(config.out or '')}; the same command goes on from there"
        ) from None
    except BaseException:
        _end(parts)
        raise
    seconds = time.monotonic() - start
    _complain_of_failures(config, parts)
    results = [part.result for part in parts if part.result is not None]
    slowest = min(results, key=lambda result: result["images_per_second"] or float("inf"))
    return PartSummary(
        kept=sum(result["kept"] for result in results),
        images_per_second=processed / seconds if processed else 0.0,
        limiting_stage=slowest["limiting_stage"],
    )


def _delete(config: LabelConfig, parts: int) -> None:
    """Start again: once for all parts, before any of them begins."""
    folder = Path(config.out or "")
    if not folder.is_dir():
        return
    with contextlib.ExitStack() as stack:
        for part in (None, *((number, parts) for number in range(1, parts + 1))):
            stack.enter_context(locked(folder, part))
        delete_run(folder, None)


def _listen(part: _Part, messages: queue.Queue[tuple[_Part, dict[str, Any] | None]]) -> None:
    """Hand on a part's messages, then None when there are no more."""
    stream = part.process.stdout
    assert stream is not None
    with stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                messages.put((part, json.loads(line)))
    part.process.wait()
    messages.put((part, None))


def _follow(
    config: LabelConfig,
    parts: Sequence[_Part],
    messages: queue.Queue[tuple[_Part, dict[str, Any] | None]],
) -> int:
    """Show the progress of all parts until the last has ended; returns the photos done."""
    running, done, failed = len(parts), 0, 0
    early: list[tuple[int, int]] = []
    with contextlib.ExitStack() as stack:
        progress: Progress | None = None
        while running:
            part, message = messages.get()
            if message is None:
                running -= 1
                failure = part.failure()
                if failure is not None:
                    rest = f"; the other {running} go on" if running else ""
                    print(f"warning: the part on {part.device} failed: {failure}{rest}", file=sys.stderr)
            elif message["kind"] == "progress":
                done += message["done"]
                failed += message["failed"]
                early.append((message["done"], message["failed"]))
            elif message["kind"] == "start":
                part.start = message
            elif message["kind"] == "result":
                part.result = message
            elif message["kind"] == "error":
                part.error = message
            settled = [p for p in parts if p.start is not None or p.process.poll() is not None]
            if progress is None and len(settled) == len(parts):
                # The line begins once every part has said how much it has to do.
                starts = [p.start for p in parts if p.start is not None]
                if starts:
                    total, kept, bad = (sum(s[key] for s in starts) for key in ("total", "kept", "failed"))
                    progress = stack.enter_context(Progress(total, kept, bad, config.quiet, "labelling"))
            if progress is not None:
                for counts in early:
                    progress.update(*counts)
                early.clear()
    return done


def _complain_of_failures(config: LabelConfig, parts: Sequence[_Part]) -> None:
    failures = [(part, part.failure()) for part in parts]
    reasons = [f"{part.device}: {reason}" for part, reason in failures if reason is not None]
    if not reasons:
        return
    refused = [p for p in parts if p.error is not None and p.error["type"] == "ConfigError"]
    if len(refused) == len(parts) and refused[0].error is not None:
        raise ConfigError(str(refused[0].error["text"]))
    where = show_path(config.out or "")
    raise CdulError(
        f"{len(reasons)} of {len(parts)} parts failed ({'; '.join(reasons)}); what was finished is in "
        f"{where}, and the same command goes on from there"
    )


def _end(parts: Sequence[_Part]) -> None:
    """Tell every part to finish writing and stop, and wait for it."""
    for part in parts:
        if part.process.poll() is None:
            part.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _SECONDS_TO_END
    for part in parts:
        try:
            part.process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.process.kill()
            part.process.wait()

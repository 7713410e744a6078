"""How a run looks in a notebook and at a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_factory import make_run

from cdul_fast.data.run_dir import open_run
from cdul_fast.reporting.notebook import photos_html

HOSTILE = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return open_run(make_run(tmp_path / "run", photos=3, names=[HOSTILE, "b.jpg", "c.jpg"]))


def test_repr_says_what_the_run_is(run: Any) -> None:
    text = repr(run)
    assert "3 of 4 labelled (1 decode_error)" in text
    assert "8: cat, dog, bicycle, traffic light, cup, potted plant and 2 more" in text
    assert "tiny (torch, fp32)" in text


def test_html_escapes_names(run: Any) -> None:
    html = run._repr_html_()
    assert "<img" not in html
    assert "&lt;img src=x" in html


def test_show_prints_rows_at_a_prompt(
    run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run.show(2)
    out = capsys.readouterr().out
    assert HOSTILE in out
    assert "b.jpg" in out
    assert "c.jpg" not in out
    assert "3 of 4 labelled" in out


def test_show_displays_photos_in_a_notebook(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    display = SimpleNamespace(display=lambda data, raw: shown.append(data))
    shell = SimpleNamespace(get_ipython=lambda: object(), display=display)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    run.show(2)
    assert shown[0]["text/html"].startswith("<iframe")
    assert shown[0]["text/plain"] == repr(run)


def test_photos_stand_in_a_frame_of_their_own(run: Any) -> None:
    html = photos_html(run, 2)
    assert html.count("<") == 2  # the frame and its end: the page inside is one escaped attribute
    assert html.count("&lt;article class=&quot;card&quot;") == 2
    assert "Resolved config" not in html


def test_show_refuses_no_photos(run: Any) -> None:
    with pytest.raises(ValueError, match="n must be"):
        run.show(0)


def test_rows_for_pandas(run: Any) -> None:
    pytest.importorskip("pandas")
    frame = run.to_pandas()
    assert list(frame["status"]) == ["ok", "ok", "ok", "decode_error"]
    assert len(frame["scores"][0]) == 8
    assert run.to_arrow().num_rows == 4

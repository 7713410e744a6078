from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdul_fast.data.paths import decode_path, encode_path, one_line


@given(st.binary(max_size=40))
def test_every_file_name_survives_the_text_form(raw: bytes) -> None:
    name = os.fsdecode(raw)
    text = encode_path(name)
    text.encode("utf-8")
    assert decode_path(text) == name


@given(st.lists(st.sampled_from(["\\", "x", "5", "c", "f", "\udcff", "é"]), max_size=12).map("".join))
def test_text_form_is_lossless_where_it_matters(name: str) -> None:
    assert decode_path(encode_path(name)) == name


@pytest.mark.parametrize("name", ["a.jpg", "ü/ö.png", "a\\b.jpg", "a\nb.jpg", "C:\\x\\y"])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert encode_path(name) == name


def test_a_byte_that_is_no_utf8_is_shown_in_hex() -> None:
    assert encode_path(os.fsdecode(b"caf\xe9.jpg")) == "caf\\xe9.jpg"
    assert encode_path("caf\\xe9.jpg") == "caf\\x5cxe9.jpg"


def test_one_line_has_no_control_characters() -> None:
    shown = one_line("a\nb\x1b[31m\udcff" + "c" * 1000, 50)
    assert shown.isprintable()
    assert len(shown) == 50

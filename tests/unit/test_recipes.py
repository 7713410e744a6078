"""The recipes in configs/ are settings of the label command."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdul_fast.cli import parse_config
from cdul_fast.config import LabelConfig
from cdul_fast.label_comparison import PUBLISHED


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_recipe_for_each_published_data_set(root: Path, name: str) -> None:
    argv = ["data", "--config", str(root / "configs" / f"{name}.yaml"), "--out", "run"]
    config = parse_config(LabelConfig, "label", argv, positionals=("source",))
    assert (config.model, config.pretrained, config.aggregator) == ("RN50x64", "openai", "cdul")
    assert config.format == {"voc2012": "voc", "coco2014": "coco", "nuswide": "nus"}[name]
    text = (root / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"--published {name}" in text

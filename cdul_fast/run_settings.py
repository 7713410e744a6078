"""The settings that made a run's scores, read back from the run."""

from __future__ import annotations

from cdul_fast.data.paths import show_path
from cdul_fast.data.run_dir import Run
from cdul_fast.errors import ConfigError
from cdul_fast.pseudo_labels import LabelSettings, available_aggregators


def run_settings(
    run: Run,
    *,
    aggregator: str | None = None,
    scale: float | None = None,
    zeta: float | None = None,
    lam: float | None = None,
) -> LabelSettings:
    """The run's own settings, with those given in their place.

    Raises:
        ConfigError: For a value out of range, or an aggregator that the stored views cannot give.
    """
    own = run.config
    stored_scale = own.get("scale") or run.model.get("logit_scale") or 100.0
    try:
        settings = LabelSettings(
            aggregator=aggregator if aggregator is not None else own.get("aggregator", "cdul"),
            scale=scale if scale is not None else float(stored_scale),
            zeta=zeta if zeta is not None else float(own.get("zeta", 0.0)),
            lam=lam if lam is not None else float(own.get("lam", 0.0)),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    available = available_aggregators(run.view_layout)
    if settings.aggregator not in available:
        raise ConfigError(
            f"aggregator {settings.aggregator!r} needs the cosines of every tile, and "
            f"{show_path(run.path)} keeps only their extremes; it can give {', '.join(available)}"
        )
    return settings

"""Types of the native module; its functions take raw pointers and are called by ``cdul_fast.ops`` only."""

from typing import TypedDict

class BuildInfo(TypedDict):
    cuda: bool
    cpu_levels: tuple[str, ...]
    compiler: str

def build_info() -> BuildInfo: ...
def best_cpu_level() -> str: ...
def cpu_level() -> str: ...
def set_cpu_level(name: str) -> None: ...
def available_cores() -> int: ...
def aggregate(
    cosines: int,
    images: int,
    views: int,
    classes: int,
    aggregator: int,
    scale: float,
    zeta: float,
    lam: float,
    scores: int,
    threads: int,
) -> None: ...
def aggregate_embeddings(
    embeddings: int,
    type: int,
    texts: int,
    images: int,
    views: int,
    classes: int,
    dim: int,
    aggregator: int,
    scale: float,
    zeta: float,
    lam: float,
    low_precision: bool,
    scores: int,
    cosines: int,
    threads: int,
) -> None: ...
def label_step(
    latent: int,
    logits: int,
    rows: int,
    n_rows: int,
    columns: int,
    sigma: float,
    step: float,
    threads: int,
) -> None: ...
def crop_resize(
    images: list[tuple[int, int, int, int]],
    boxes: int,
    count: int,
    box_width: int,
    fits: int,
    fits_count: int,
    size: int,
    type: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    out: int,
    threads: int,
) -> None: ...

# In builds with CUDA only: device pointers, and a stream as an integer.
def cuda_aggregate(
    cosines: int,
    images: int,
    views: int,
    classes: int,
    aggregator: int,
    scale: float,
    zeta: float,
    lam: float,
    scores: int,
    stream: int,
) -> None: ...
def cuda_aggregate_embeddings(
    embeddings: int,
    type: int,
    texts: int,
    images: int,
    views: int,
    classes: int,
    dim: int,
    aggregator: int,
    scale: float,
    zeta: float,
    lam: float,
    low_precision: bool,
    scores: int,
    cosines: int,
    stream: int,
) -> None: ...
def cuda_label_step(
    latent: int,
    logits: int,
    rows: int,
    n_rows: int,
    columns: int,
    sigma: float,
    step: float,
    stream: int,
) -> None: ...
def cuda_plan_crops(
    images: list[tuple[int, int, int, int]],
    boxes: int,
    count: int,
    box_width: int,
    fits: int,
    fits_count: int,
    size: int,
    type: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> tuple[bytes, bytes]: ...
def cuda_crop_resize(
    views: int, tables: int, count: int, size: int, type: int, out: int, stream: int
) -> None: ...

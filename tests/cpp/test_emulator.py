"""The emulated device finds the faults that it is there for."""

from __future__ import annotations

import ctypes
import subprocess

import emulation
import pytest

pytestmark = pytest.mark.cuda_emulated


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulator")
    source = emulation.ROOT / "tests/cpp/emulator_checks.cpp"
    built = emulation.compile_object(source, folder, emulation.CUDA, [])
    subprocess.run(["g++", "-shared", str(built), "-o", str(folder / "checks.so")], check=True)
    library = ctypes.CDLL(str(folder / "checks.so"))
    library.emulator_failures.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize("order", emulation.ORDERS)
def test_blocks_barriers_shuffles_and_atomics(emulator, order):
    assert emulator.emulator_failures(emulation.ORDERS[order]) == b""


def check_all(library: ctypes.CDLL) -> None:
    for order in emulation.ORDERS.values():
        library.emulated_order(order)
        emulation.check_aggregate(library, 2, 9, 37, zeta=0.05, lam=0.3, scale=30.0)
        emulation.check_aggregate_embeddings(library, 2, 17, 70, 40)
        emulation.check_aggregate_embeddings(library, 1, 5, 40, 33)
        emulation.check_label_step(library, 7, 33)
        emulation.check_label_step(library, 7, 33, some_rows=True)
        emulation.check_crop_resize(library, 90, 61, 33)
        emulation.check_crop_resize(library, 300, 60, 33)
        emulation.check_crop_resize(library, 90, 61, 36)
        emulation.check_crop_plan(library)


MUTATIONS = {
    "no barrier between softmax and reduction": (
        "aggregate_photo.cuh",
        "  __syncthreads();\n\n  for (int64_t c = threadIdx.x",
        "\n  for (int64_t c = threadIdx.x",
    ),
    "first snippet left out": (
        "aggregate_photo.cuh",
        "for (int64_t v = 1; v < used; ++v)",
        "for (int64_t v = 2; v < used; ++v)",
    ),
    "no barrier after the lengths": (
        "aggregate_embeddings.cu",
        "text_factors);\n      __syncthreads();",
        "text_factors);",
    ),
    "no barrier after the tiles are loaded": (
        "aggregate_embeddings.cu",
        "text_tile[r][k] = rounded(x, low_precision);\n        }\n        __syncthreads();",
        "text_tile[r][k] = rounded(x, low_precision);\n        }",
    ),
    "no barrier before the tiles are loaded again": (
        "aggregate_embeddings.cu",
        "        __syncthreads();\n      }\n\n      if (column",
        "      }\n\n      if (column",
    ),
    "no barrier after the cosines are written": (
        "aggregate_embeddings.cu",
        "      __syncthreads();  // the factors",
        "      // the factors",
    ),
    "a class unwritten": (
        "aggregate_embeddings.cu",
        "if (column < tile_classes)",
        "if (column + 1 < tile_classes)",
    ),
    "last element unwritten": ("label_step.cu", "i < count;", "i + 1 < count;"),
    "row off by one": ("label_step.cu", "rows[i / columns] * columns", "(rows[i / columns] + 1) * columns"),
    "no barrier after the first pass": (
        "crop_resize.cu",
        "clipped(blue) << 16);\n    }\n    __syncthreads();",
        "clipped(blue) << 16);\n    }",
    ),
    "no barrier before the next lines": (
        "crop_resize.cu",
        "    __syncthreads();  // the lines",
        "    // the lines",
    ),
    "source pixel off by one": (
        "crop_resize.cu",
        "first.start[p] * tap_stride",
        "(first.start[p] + 1) * tap_stride",
    ),
    "last column unwritten": ("crop_resize.cu", "if (out_x < size &&", "if (out_x < size - 1 &&"),
    "views beyond a batch's last are written": (
        "crop_resize.cu",
        "  if (view.source == nullptr) return;",
        "  if (index < 0) return;",
    ),
    "no barrier before the tile leaves": (
        "crop_resize.cu",
        "bits[channel];\n  __syncthreads();",
        "bits[channel];",
    ),
    "last 16 bytes of a row unwritten": (
        "crop_resize.cu",
        "if (x < size && y",
        "if (x + kPerStore < size && y",
    ),
    "wide stores to rows that do not begin at multiples of 16 bytes": (
        "crop_resize.cu",
        "size * sizeof(T) % kStore == 0 &&",
        "",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_turns_the_checks_red(objects, tmp_path, name):
    file, old, new = MUTATIONS[name]
    copy = emulation.mutated(tmp_path, file, old, new)
    changed = [copy / file]
    if file == "aggregate_photo.cuh":
        changed = [copy / "aggregate.cu", copy / "aggregate_embeddings.cu"]
    built = {path.name: path for path in objects}
    for source in changed:
        path = emulation.compile_object(source, tmp_path, copy, [])
        built[path.name] = path
    library = emulation.load([*built.values()], tmp_path / "mutated.so", ["--coverage"])
    with pytest.raises(AssertionError):
        check_all(library)


def test_without_a_fault_they_are_green(library):
    check_all(library)


def run_race_check(folder, cuda):
    """The finished process, or a skip where ThreadSanitizer does not work."""
    flags = ["-fsanitize=thread", "-DEMULATED_THREADS"]
    wanted = [source for source in emulation.sources(cuda) if source != emulation.DRIVER]
    built = [
        emulation.compile_object(source, folder, cuda, flags)
        for source in [*wanted, emulation.ROOT / "tests/cpp/race_check.cpp"]
    ]
    program = folder / "race_check"
    link = subprocess.run(
        ["g++", "-fsanitize=thread", *map(str, built), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if link.returncode != 0:
        pytest.skip(f"no ThreadSanitizer: {link.stderr.strip().splitlines()[-1]}")
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run under this kernel's address layout")
    return done


def test_thread_sanitizer_finds_nothing(tmp_path):
    done = run_race_check(tmp_path, emulation.CUDA)
    assert done.returncode == 0, done.stderr


def test_thread_sanitizer_finds_a_removed_barrier(tmp_path):
    copy = emulation.mutated(tmp_path, *MUTATIONS["no barrier before the next lines"])
    done = run_race_check(tmp_path, copy)
    assert done.returncode != 0
    assert "data race" in done.stderr
    assert "crop_resize.cu" in done.stderr

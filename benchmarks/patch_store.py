"""Compares formats for the prepared store: memory-mapped .npy, blosc2 b2nd and zarr, with and without compression.

    make bench-peers        or, in an environment with blosc2 (installed with nnU-Net) and zarr:
    python benchmarks/patch_store.py

Every format stores the same int16 CTs of the paper's plan, one of 64 and one of 512 slices. The same 56×160×160 patches
are read from each, formats in turn, by one thread and from the page cache. Before timing, the script checks that every
format returns the patches of the original array.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import blosc2
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from dlunet.phantom import make_phantom
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "patch_store.json"
PATCH, SLICES, EDGE = (56, 160, 160), (64, 512), 256
#: Chunk size chosen for the patch size: a patch touches few chunks, and little of the data read is discarded.
CHUNKS = (32, 64, 64)
PATCHES, REPEATS = 20, 5

Write = Callable[[np.ndarray, Path], None]
Open = Callable[[Path], Any]


def main() -> None:
    """Write each volume in each format, check and time reading, and write the results."""
    results: dict[str, Any] = {"patch": PATCH, "volume": f"slices × {EDGE} × {EDGE}, int16", "formats": {}}
    with tempfile.TemporaryDirectory() as folder:
        volumes = {slices: volume(slices) for slices in SLICES}
        stores = {name: written(name, volumes, Path(folder)) for name in FORMATS}
        milliseconds = time_reading(stores, volumes)
        for name, store in stores.items():
            results["formats"][name] = {
                "mib_of_512_slices": round(size(store[512][0]) / 2**20, 1),
                "write_s_of_512_slices": round(store[512][1], 2),
                "ms_a_patch": {slices: round(milliseconds[name, slices], 2) for slices in SLICES},
            }
    results["formats_versions"] = {name: version(name) for name in ("blosc2", "zarr")}
    results["provenance"] = provenance()
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results["formats"], indent=2))


def volume(slices: int) -> np.ndarray:
    """A synthetic abdomen in the store's units, repeated and cropped to size."""
    image = make_phantom(1, "labelled").image
    repeats = [-(-wanted // found) for wanted, found in zip((slices, EDGE, EDGE), image.shape, strict=True)]
    cut = np.tile(image, repeats)[:slices, :EDGE, :EDGE]
    return np.ascontiguousarray(np.clip(cut, -300, 300) * 64).astype(np.int16)


def written(name: str, volumes: dict[int, np.ndarray], folder: Path) -> dict[int, tuple[Path, float]]:
    """Write every volume in one format; returns its path and the seconds taken."""
    stores = {}
    for slices, array in volumes.items():
        path = folder / f"{slices}.{name.replace(' ', '_')}"
        begin = time.perf_counter()
        FORMATS[name][0](array, path)
        stores[slices] = (path, time.perf_counter() - begin)
    return stores


def time_reading(
    stores: dict[str, dict[int, tuple[Path, float]]], volumes: dict[int, np.ndarray]
) -> dict[tuple[str, int], float]:
    """The median milliseconds per patch, for each format and length."""
    times: dict[tuple[str, int], list[float]] = {(name, slices): [] for name in stores for slices in SLICES}
    for repeat in range(REPEATS):
        for (name, slices), found in times.items():
            opened = FORMATS[name][1](stores[name][slices][0])
            rng = np.random.default_rng(repeat)
            boxes = [box(rng, volumes[slices].shape) for _ in range(PATCHES)]
            if repeat == 0:  # this also brings the file into the page cache
                assert all(np.array_equal(opened[one], volumes[slices][one]) for one in boxes), name
            begin = time.perf_counter()
            for one in boxes:
                np.array(opened[one])
            found.append((time.perf_counter() - begin) / PATCHES * 1000)
    return {key: median(found) for key, found in times.items()}


def box(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A random patch inside a volume."""
    starts = [int(rng.integers(n - p + 1)) for n, p in zip(shape, PATCH, strict=True)]
    return tuple(slice(s, s + p) for s, p in zip(starts, PATCH, strict=True))


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def write_npy(array: np.ndarray, path: Path) -> None:
    """Write the array uncompressed in memory order."""
    with path.open("wb") as file:
        np.save(file, array)


def write_b2nd(array: np.ndarray, path: Path) -> None:
    """Write as nnU-Net stores its cases: zstd, with chunks divided into blocks."""
    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 8}
    blosc2.asarray(array, urlpath=str(path), chunks=CHUNKS, blocks=(16, 32, 32), cparams=settings)


def write_zarr(array: np.ndarray, path: Path, compressors: Any = None) -> None:
    """Write one file per chunk."""
    store = zarr.create_array(
        str(path), shape=array.shape, chunks=CHUNKS, dtype=array.dtype, compressors=compressors, overwrite=True
    )
    store[:] = array


FORMATS: dict[str, tuple[Write, Open]] = {
    "npy": (write_npy, lambda path: np.load(path, mmap_mode="r")),
    "b2nd zstd": (write_b2nd, lambda path: blosc2.open(str(path), mode="r", dparams={"nthreads": 1})),
    "zarr": (write_zarr, lambda path: zarr.open_array(str(path), mode="r")),
    "zarr zstd": (
        lambda array, path: write_zarr(array, path, BloscCodec(cname="zstd", clevel=5)),
        lambda path: zarr.open_array(str(path), mode="r"),
    ),
}


if __name__ == "__main__":
    main()

"""The library is compiled once, and only a complete one that nobody else can have written is loaded."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlunet.native import FLAGS, NativeUnavailable, find_compiler, library, why_unavailable
from tests.native.variants import needs_compiler

pytestmark = needs_compiler

LOAD = "from dlunet.native import load_library; print(load_library().width())"


@pytest.fixture(scope="module")
def compiled():
    """The library that this machine's own cache contains, for compilers that only copy it."""
    library.load_library()
    path = library.library_path(find_compiler())
    if not path.is_file():
        pytest.skip("this machine has no cache")
    return path


@pytest.fixture
def compiler(compiled, tmp_path, monkeypatch):
    """``compiler(script)`` makes a shell script the compiler; ``$out`` is its output, and $LIBRARY what belongs there.

    Each compilation adds a line to the returned file.
    """
    real, calls = find_compiler(), tmp_path / "calls"

    def install(script: str) -> Path:
        path = tmp_path / "compiler"
        path.write_text(
            f'#!/bin/sh\ncase " $* " in *" -E "*) exec {real} "$@";; esac\n'
            f"for out; do :; done\nLIBRARY={compiled}\n{script}\necho done >> {calls}\n"
        )
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        calls.write_text("")
        return calls

    return install


COPY = 'cp "$LIBRARY" "$out"'


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_it_is_compiled_once(empty_cache, umask):
    quickly, before = (*FLAGS, "-O0"), os.umask(umask)
    try:
        library.load_library(quickly)
    finally:
        os.umask(before)
    (path,) = empty_cache.iterdir()
    stamp = path.stat().st_mtime_ns
    library.load_library.cache_clear()
    library.load_library(quickly)
    assert list(empty_cache.iterdir()) == [path] and path.stat().st_mtime_ns == stamp


def test_each_set_of_flags_and_each_source_has_its_own_library(empty_cache, monkeypatch, tmp_path):
    one = library.library_path(find_compiler())
    assert library.library_path(find_compiler(), (*FLAGS, "-O2")) != one == library.library_path(find_compiler())
    changed = tmp_path / "layout.h"
    changed.write_text(library.HEADERS[0].read_text() + "\n")
    monkeypatch.setattr(library, "HEADERS", [changed, *library.HEADERS[1:]])
    assert library.library_path(find_compiler()) != one


@pytest.mark.parametrize("spoil", ["no folder", "others can write to it"])
def test_a_cache_that_cannot_be_used_or_trusted(spoil, empty_cache, tmp_path, monkeypatch, compiler):
    """The library is compiled for this process only, and no file remains."""
    calls = compiler(COPY)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(library.tempfile, "tempdir", str(temporary))
    if spoil == "no folder":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    else:
        empty_cache.mkdir(parents=True)
        empty_cache.chmod(0o777)
        library.library_path(find_compiler()).write_bytes(b"what somebody else put there")
    assert library.load_library().width() in (8, 16)
    assert list(temporary.iterdir()) == [] and calls.read_text() == "done\n"


def test_a_library_that_others_can_write_to_is_replaced(empty_cache, compiler):
    calls = compiler(COPY)
    path = library.library_path(find_compiler())
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_bytes(b"what somebody else put there")
    path.chmod(0o666)
    assert library.load_library().width() in (8, 16)
    assert calls.read_text() == "done\n" and path.stat().st_size > 1000


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_read_only_cache_is_read(empty_cache, compiler, compiled):
    calls = compiler(COPY)
    path = library.library_path(find_compiler())
    path.parent.mkdir(parents=True)
    shutil.copy(compiled, path)
    path.chmod(0o500)
    path.parent.chmod(0o500)
    try:
        assert library.load_library().width() in (8, 16)
    finally:
        path.parent.chmod(0o700)
    assert calls.read_text() == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_read_only_cache_without_the_library(empty_cache, compiler):
    calls = compiler(COPY)
    empty_cache.mkdir(parents=True)
    empty_cache.chmod(0o500)
    try:
        assert library.load_library().width() in (8, 16) and list(empty_cache.iterdir()) == []
    finally:
        empty_cache.chmod(0o700)
    assert calls.read_text() == "done\n"


def test_nowhere_to_compile(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(library.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(NativeUnavailable, match="cannot be compiled"):
        library.load_library()


def test_a_damaged_library_is_named(empty_cache):
    path = library.library_path(find_compiler())
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_bytes(b"")
    path.chmod(0o700)
    with pytest.raises(NativeUnavailable, match=f"{path}: cannot be loaded.*delete it"):
        library.load_library()


def test_a_compiler_that_fails_half_way_leaves_nothing(empty_cache, compiler):
    compiler('head -c 5000 "$LIBRARY" > "$out"; echo "no space left" >&2; exit 1')
    with pytest.raises(NativeUnavailable, match="fails: no space left"):
        library.load_library()
    assert list(empty_cache.iterdir()) == []
    assert "no space left" in why_unavailable()


@pytest.mark.parametrize(
    "written", ['head -c 5000 "$LIBRARY" > "$out"', COPY], ids=["half written", "written, not yet renamed"]
)
def test_a_killed_compilation_is_never_taken_for_a_library(written, empty_cache, compiler):
    calls = compiler(f"{written}; echo written >> {empty_cache.parent}/progress; exec sleep 600")
    progress = empty_cache.parent / "progress"
    empty_cache.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", LOAD], start_new_session=True)
    try:
        while not progress.exists():
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    assert not library.library_path(find_compiler()).exists()
    calls = compiler(COPY)
    assert library.load_library().width() in (8, 16)
    assert calls.read_text() == "done\n"


def test_two_processes_that_compile_at_the_same_time(empty_cache, compiler):
    compiler(f"{COPY}; sleep 0.5")
    command = [sys.executable, "-c", LOAD]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert all(process.communicate()[0].strip() in ("8", "16") for process in processes)
    assert list(empty_cache.iterdir()) == [library.library_path(find_compiler())]

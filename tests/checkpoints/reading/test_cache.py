"""The cache of pulled files: what stays, what goes, and many processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlflow_scalpel.checkpoints.reading import cache
from mlflow_scalpel.errors import ScalpelError


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of 1000 bytes."""
    monkeypatch.setenv("SCALPEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SCALPEL_CACHE_GB", "1e-6")
    yield tmp_path / "cache"
    for entry in list(cache._held):
        cache.release(entry)


def writing(size: int) -> Callable[[Path], None]:
    return lambda partial: (partial / "file").write_bytes(bytes(size)) and None


def forbidden(partial: Path) -> None:
    raise AssertionError(f"{partial} is filled a second time")


def keep_and_release(key: str, size: int) -> Path:
    entry = cache.keep(key, size, writing(size))
    cache.release(entry)
    return entry


def entries(root: Path) -> set[str]:
    return {entry.name for entry in (root / "entries").iterdir()}


def test_what_was_used_longest_ago_goes_first(root):
    for key in "abc":
        keep_and_release(key, 300)
    keep_and_release("a", 300)
    keep_and_release("d", 300)
    assert entries(root) == {"a", "c", "d"}
    keep_and_release("e", 600)
    assert entries(root) == {"d", "e"}
    assert not list((root / "trash").iterdir())


def test_an_entry_is_filled_once(root):
    entry = keep_and_release("a", 300)
    assert cache.keep("a", 300, forbidden) == entry
    assert cache.keep("a", 300, forbidden) == entry
    assert cache.find("a") == entry
    assert cache.find("b") is None


def test_what_is_held_stays_and_the_error_says_so(root):
    held = cache.keep("a", 600, writing(600))
    with pytest.raises(ScalpelError, match=r"running processes .* raise SCALPEL_CACHE_GB"):
        cache.keep("b", 600, writing(600))
    assert held.is_dir()
    cache.release(held)
    cache.keep("b", 600, writing(600))
    assert entries(root) == {"b"}


def test_an_entry_larger_than_the_cache(root):
    keep_and_release("a", 300)
    with pytest.raises(ScalpelError, match=r"5000000000 bytes .* SCALPEL_CACHE_GB to at least 5"):
        cache.keep("b", 5_000_000_000, forbidden)
    assert entries(root) == {"a"}


def test_what_failed_is_not_there_and_gone_on_with(root):
    def broken(partial: Path) -> None:
        (partial / "first").write_bytes(b"1")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        cache.keep("a", 300, broken)
    assert cache.find("a") is None

    def rest(partial: Path) -> None:
        assert (partial / "first").read_bytes() == b"1"

    cache.keep("a", 300, rest)


def test_what_an_attempt_left_behind_makes_room_too(root):
    def broken(partial: Path) -> None:
        (partial / "file").write_bytes(bytes(800))
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        cache.keep("a", 800, broken)
    keep_and_release("b", 600)
    assert not (root / "partial" / "a").exists()


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as the disk does it


@pytest.mark.parametrize(
    ("harm", "check"),
    [
        (lambda entry: (entry / "file").write_bytes(b""), False),
        (lambda entry: (entry / "file").unlink(), False),
        (lambda entry: (entry / "more.safetensors").write_bytes(b"1"), False),
        (lambda entry: (entry / "file").write_bytes(b"1" * 300), False),  # of the same size
        (lambda entry: (entry.parents[1] / "records" / "a").write_text("{"), False),
        (lambda entry: _flip(entry / "file"), True),
    ],
)
def test_what_is_damaged_is_made_again(root, capfd, harm, check):
    entry = keep_and_release("a", 300)
    harm(entry)
    assert cache.find("a", check=check) is None
    assert "is damaged (" in capfd.readouterr().err
    assert cache.keep("a", 300, writing(300)) == entry
    harm(entry)  # while this process holds it
    assert cache.keep("a", 300, writing(300), check=check) == entry
    assert (entry / "file").read_bytes() == bytes(300)
    assert [file.name for file in entry.iterdir()] == ["file"]


def test_digests_are_compared_at_an_interval(root, monkeypatch):
    entry = keep_and_release("a", 300)
    _flip(entry / "file")
    assert cache.find("a") == entry
    monkeypatch.setenv("SCALPEL_CACHE_DAYS", "0")
    assert cache.find("a") is None
    monkeypatch.setenv("SCALPEL_CACHE_DAYS", "soon")
    with pytest.raises(ScalpelError, match="SCALPEL_CACHE_DAYS = 'soon'"):
        cache.keep("a", 300, writing(300))


def test_a_file_that_was_touched_and_not_changed(root):
    entry = keep_and_release("a", 300)
    os.utime(entry / "file")
    assert cache.keep("a", 300, forbidden) == entry


def test_files_are_on_the_disk_before_the_entry_counts(root, monkeypatch):
    done: list[str] = []
    for module, name in ((os, "fsync"), (Path, "rename"), (Path, "replace")):
        real = getattr(module, name)

        def told(first, *rest, real=real):
            done.append(os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else
                        f"rename {first}")  # fmt: skip
            return real(first, *rest)

        monkeypatch.setattr(module, name, told)
    keep_and_release("a", 300)
    partial = root / "partial" / "a"
    renamed = done.index(f"rename {partial}")
    assert {str(partial), str(partial / "file"), str(root / "records")} <= set(done[:renamed])
    assert str(root / "entries") in done[renamed:]


def test_emptied_by_hand_while_in_use(root):
    import shutil

    cache.keep("a", 300, writing(300))
    shutil.rmtree(root)
    entry = cache.keep("a", 300, writing(300))
    assert (entry / "file").is_file()
    assert cache.keep("a", 300, forbidden) == entry


@pytest.mark.parametrize("size", ["many", "nan", "inf", "0", "-1"])
def test_a_limit_that_is_no_size(monkeypatch, size):
    monkeypatch.setenv("SCALPEL_CACHE_GB", size)
    with pytest.raises(ScalpelError, match=f"SCALPEL_CACHE_GB = '{size}'.*=50"):
        cache.keep("a", 1, writing(1))


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "cache"
    monkeypatch.delenv("SCALPEL_CACHE")
    assert cache.directory() == tmp_path / "xdg" / "mlflow-scalpel"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory() == tmp_path / ".cache" / "mlflow-scalpel"
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCALPEL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ScalpelError, match="name a directory that can be written to"):
        cache.keep("a", 1, writing(1))


FILL = """
import sys
from mlflow_scalpel.checkpoints.reading import cache

def fill(partial):
    print("fills", flush=True)
    sys.stdin.readline()
    (partial / "file").write_bytes(bytes(600))

entry = cache.keep("a", 600, fill)
print("has", (entry / "file").stat().st_size, flush=True)
sys.stdin.readline()
"""


def start() -> subprocess.Popen[str]:
    """A process that goes on at each line that it gets."""
    return subprocess.Popen(
        [sys.executable, "-c", FILL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_another_process_waits_for_the_one_that_fills(root):
    first = start()
    assert line(first) == "fills"
    second = start()
    assert line(second).startswith("waiting for the process that puts")
    assert first.stdin is not None
    first.stdin.write("go on\n")
    first.stdin.flush()
    assert line(first) == line(second) == "has 600"
    # Both read it: no room can be made before both have ended.
    for process in (first, second):
        with pytest.raises(ScalpelError, match="running processes"):
            cache.keep("b", 600, writing(600))
        process.communicate("done\n", timeout=20)
    cache.keep("b", 600, writing(600))
    assert entries(root) == {"b"}


def test_what_is_being_filled_counts(root):
    process = start()
    assert line(process) == "fills"
    with pytest.raises(ScalpelError, match="running processes"):
        cache.keep("b", 600, writing(600))
    cache.keep("c", 400, writing(400))
    process.kill()
    process.communicate()
    assert cache.find("a") is None
    cache.keep("b", 600, writing(600))
    assert entries(root) == {"b", "c"}

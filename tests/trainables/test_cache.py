"""The content-addressed folder: what counts as a hit, and what is made again."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save_file

from trainables.cache import MANIFEST, ArtifactStore, content_key

TWO_FILES = {"weights.bin": b"\x00\x01" * 500, "figures.json": b'{"a": 1}'}


class Maker:
    """Writes two files and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        for name, content in TWO_FILES.items():
            (folder / name).write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST}


def test_the_first_request_makes_and_the_second_finds(tmp_path: Path) -> None:
    store, make = ArtifactStore(tmp_path / "cache"), Maker()
    first, was_there = store.get_or_make("ids", "k1", make)
    assert not was_there
    second, was_there = store.get_or_make("ids", "k1", make)
    assert was_there
    assert (make.calls, second, contents(second)) == (1, first, TWO_FILES)


def test_who_may_read_one_file_may_read_all(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        Maker()(folder)
        save_file({"weights": np.zeros(3)}, folder / "weights.safetensors")  # its owner's alone

    folder, _ = ArtifactStore(tmp_path).get_or_make("ids", "k1", make)
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert modes.keys() == {*TWO_FILES, "weights.safetensors", MANIFEST}
    assert len(set(modes.values())) == 1


def test_a_second_store_on_the_same_folder_finds_the_artefact(tmp_path: Path) -> None:
    make = Maker()
    ArtifactStore(tmp_path).get_or_make("ids", "k1", make)
    assert ArtifactStore(tmp_path).get_or_make("ids", "k1", make)[1]
    assert make.calls == 1


@pytest.mark.parametrize(("kind", "key"), [("ids", "k2"), ("table", "k1")])
def test_another_kind_or_key_is_another_artefact(tmp_path: Path, kind: str, key: str) -> None:
    store, make = ArtifactStore(tmp_path), Maker()
    first, _ = store.get_or_make("ids", "k1", make)
    second, was_there = store.get_or_make(kind, key, make)
    assert not was_there
    assert first != second


def test_nothing_is_kept_if_make_raises(tmp_path: Path) -> None:
    store, make = ArtifactStore(tmp_path), Maker()

    def broken(folder: Path) -> None:
        make(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.get_or_make("ids", "k1", broken)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []
    assert not store.get_or_make("ids", "k1", make)[1]


def truncate(folder: Path) -> None:
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(100)


def tamper(folder: Path) -> None:
    content = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(b"\xff" + content[1:])


def lose_a_file(folder: Path) -> None:
    (folder / "figures.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe not json")


def halve_the_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def list_as_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps(sorted(TWO_FILES)))


def empty_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")


def add_a_file(folder: Path) -> None:
    (folder / "stray.bin").write_bytes(b"of another version")


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        tamper,
        lose_a_file,
        lose_the_manifest,
        garble_the_manifest,
        halve_the_manifest,
        list_as_manifest,
        empty_the_manifest,
        add_a_file,
    ],
)
def test_what_does_not_match_its_manifest_is_made_again(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    store, make = ArtifactStore(tmp_path), Maker()
    folder, _ = store.get_or_make("ids", "k1", make)
    spoil(folder)
    again, was_there = store.get_or_make("ids", "k1", make)
    assert not was_there
    assert contents(again) == TWO_FILES
    assert store.get_or_make("ids", "k1", make)[1]


def test_a_half_written_folder_under_the_final_name_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "ids-k1").mkdir()
    (tmp_path / "ids-k1" / "weights.bin").write_bytes(b"half")
    folder, was_there = ArtifactStore(tmp_path).get_or_make("ids", "k1", Maker())
    assert not was_there
    assert contents(folder) == TWO_FILES


def test_an_artefact_under_anothers_name_is_made_again(tmp_path: Path) -> None:
    store, make = ArtifactStore(tmp_path), Maker()
    folder, _ = store.get_or_make("ids", "k1", make)
    folder.rename(tmp_path / "ids-k2")
    assert not store.get_or_make("ids", "k2", make)[1]


@pytest.mark.parametrize("link", [False, True])
def test_what_is_no_folder_is_made_again(tmp_path: Path, link: bool) -> None:
    where = tmp_path / "ids-k1"
    where.symlink_to("nowhere") if link else where.write_text("a file")
    folder, was_there = ArtifactStore(tmp_path).get_or_make("ids", "k1", Maker())
    assert not was_there
    assert contents(folder) == TWO_FILES


def test_an_error_that_is_kept_holds_no_lock(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no") as kept:  # and with its traceback all that the call held
        ArtifactStore(tmp_path).get_or_make("ids", "k1", fail)
    with FileLock(tmp_path / ".ids-k1.lock", timeout=0):
        assert kept.value.__traceback__ is not None


def test_the_scratch_folder_of_a_killed_process_is_no_artefact(tmp_path: Path) -> None:
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; from pathlib import Path; from trainables.cache import ArtifactStore\n"
            "def make(folder):\n    (folder / 'weights.bin').write_bytes(b'half'); os._exit(9)\n"
            "ArtifactStore(Path(sys.argv[1])).get_or_make('ids', 'k1', make)",
            str(tmp_path),
        ],
        check=False,
    )
    assert killed.returncode == 9
    folder, was_there = ArtifactStore(tmp_path).get_or_make("ids", "k1", Maker())
    assert not was_there
    assert contents(folder) == TWO_FILES


def test_what_a_killed_process_left_behind_is_removed(tmp_path: Path) -> None:
    scratch = tmp_path / ".ids-k1.abcd1234"  # as a process that died while it made this artefact leaves it
    scratch.mkdir()
    (scratch / "weights.bin").write_bytes(b"half")
    ArtifactStore(tmp_path).get_or_make("ids", "k1", Maker())
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["ids-k1"]


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from trainables.cache import ArtifactStore\n"
        "root = Path(sys.argv[1])\n"
        "def make(folder):\n"
        "    with (root / 'calls').open('a') as calls: calls.write('x')\n"
        "    time.sleep(0.5); (folder / 'a.txt').write_text('made')\n"
        "Path(root / f'ready{sys.argv[2]}').touch()\n"
        "while len(list(root.glob('ready*'))) < 2: time.sleep(0.01)\n"
        "folder, was_there = ArtifactStore(root / 'cache').get_or_make('ids', 'k1', make)\n"
        "print(was_there, (folder / 'a.txt').read_text())\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), n], stdout=subprocess.PIPE, text=True)
        for n in "12"
    ]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert said == ["False made", "True made"]
    assert (tmp_path / "calls").read_text() == "x"


def test_content_key_does_not_depend_on_the_order_of_dict_keys() -> None:
    one = {"a": 1, "b": {"c": [1, 2], "d": None}}
    other = {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert content_key(one) == content_key(other)


@pytest.mark.parametrize("other", [{"a": [2, 1]}, {"a": [1, 2.5]}, {"a": "[1, 2]"}, {"b": [1, 2]}, {"a": [1, 2, None]}])
def test_content_key_depends_on_everything_else(other: dict[str, object]) -> None:
    assert content_key({"a": [1, 2]}) != content_key(other)


def test_content_key_is_the_same_in_every_process() -> None:
    program = "from trainables.cache import content_key; print(content_key({'ä': [1, None, 0.1], 'b': 'x'}))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == content_key({"b": "x", "ä": [1, None, 0.1]})
    assert len(printed.strip()) == 16

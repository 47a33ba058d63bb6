"""Compiled code is run from this user's own folder only: whatever else lies there for it is never loaded."""

import grp
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest

from model.ops import build_cache, native
from model.ops.build_cache import TRITON, build_folder, keep_kernels

NAME = "two-phase-search"
LOAD = "import sys; from model.ops import native; library = native.load(); assert library; print(library._name)"
PLANTED = '__attribute__((constructor)) static void run(void) {{ __builtin_printf("HIJACKED\\n"); }}'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def load(cache: Path) -> tuple[Path, str]:
    """Load the operators in a process of its own: the library, and what else that printed."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = forked.run([sys.executable, "-c", LOAD], env=environment)
    assert done.returncode == 0, done.stderr
    *rest, last = done.stdout.splitlines()
    return Path(last), "\n".join(rest) + done.stderr


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """Name and content of a library that somebody else made: the operators, the hash that goes with them, and more."""
    if native.load() is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("planted")
    (folder / "more.c").write_text("#include <stdio.h>\n" + native.SOURCE.read_text() + PLANTED.format())
    made = folder / "more.so"
    options = ["-O1", "-fPIC", "-fopenmp-simd", "-shared", "-o", str(made), str(folder / "more.c"), "-lm"]
    subprocess.run(["cc", *options], check=True, capture_output=True)
    content = made.read_bytes()
    return load(folder)[0].name, content + hashlib.sha256(content).digest()


def host(cache: Path) -> Path:
    return cache / NAME / build_folder().name


def plant(folder: Path, planted: tuple[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / planted[0]).write_bytes(planted[1])
    (folder / planted[0]).chmod(0o700)
    folder.parent.chmod(0o700)


def of_somebody_else(cache: Path) -> None:
    for path in (cache / NAME, *(cache / NAME).rglob("*")):
        os.chown(path, 65534, 65534)


def the_hosts_folder_of_somebody_else(cache: Path) -> None:
    os.chown(host(cache), 65534, 65534)


def the_file_of_somebody_else(cache: Path) -> None:
    os.chown(next(host(cache).iterdir()), 65534, 65534)


def writable_by_all(cache: Path) -> None:
    host(cache).chmod(0o777)


def writable_by_the_group(cache: Path) -> None:
    (cache / NAME).chmod(0o770)


def a_folder_above_writable_by_all(cache: Path) -> None:
    """Whoever may rename the folder could do so between the look at it and the loading from it."""
    cache.chmod(0o777)


def a_folder_above_writable_by_a_group(cache: Path) -> None:
    os.chown(cache, -1, next(g.gr_gid for g in grp.getgrall() if g.gr_name == "users"))
    cache.chmod(0o770)


def a_folder_above_of_somebody_else(cache: Path) -> None:
    os.chown(cache, 65534, -1)
    cache.chmod(0o755)


def a_file_writable_by_all(cache: Path) -> None:
    next(host(cache).iterdir()).chmod(0o777)


def a_link_to_the_folder(cache: Path) -> None:
    (cache / NAME).rename(cache / "elsewhere")
    (cache / NAME).symlink_to(cache / "elsewhere")


def a_link_to_the_hosts_folder(cache: Path) -> None:
    moved = host(cache).rename(cache / "elsewhere")
    host(cache).symlink_to(moved)


def a_link_to_the_library(cache: Path) -> None:
    (library,) = host(cache).iterdir()
    moved = library.rename(cache / "elsewhere.so")
    library.symlink_to(moved)


def test_what_is_planted_would_run_if_it_were_trusted(tmp_path: Path, planted: tuple[str, bytes]) -> None:
    """Else the tests below would show nothing."""
    plant(host(tmp_path), planted)
    library, said = load(tmp_path)
    assert library.parent == host(tmp_path)
    assert "HIJACKED" in said


@pytest.mark.parametrize(
    "hand_over",
    [
        pytest.param(of_somebody_else, marks=needs_root),
        pytest.param(the_hosts_folder_of_somebody_else, marks=needs_root),
        pytest.param(the_file_of_somebody_else, marks=needs_root),
        writable_by_all,
        writable_by_the_group,
        a_folder_above_writable_by_all,
        pytest.param(a_folder_above_writable_by_a_group, marks=needs_root),
        pytest.param(a_folder_above_of_somebody_else, marks=needs_root),
        a_file_writable_by_all,
        a_link_to_the_folder,
        a_link_to_the_hosts_folder,
        a_link_to_the_library,
    ],
)
def test_a_planted_library_is_never_loaded(
    tmp_path: Path, planted: tuple[str, bytes], hand_over: Callable[[Path], None]
) -> None:
    plant(host(tmp_path), planted)
    hand_over(tmp_path)
    library, said = load(tmp_path)
    assert "HIJACKED" not in said
    in_cache = library.is_relative_to(tmp_path)
    assert in_cache == (hand_over in (the_file_of_somebody_else, a_file_writable_by_all, a_link_to_the_library))
    assert in_cache == ("but built for each process" not in said)
    assert in_cache == library.exists()  # one of a process goes with it


@pytest.mark.parametrize(("mode", "group"), [(0o1777, ""), (0o770, "the user's own")])
def test_folders_above_that_only_the_user_may_rename_in_are_as_good_as_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, group: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if group:
        monkeypatch.setattr(build_cache, "_is_users_own", lambda gid: gid == tmp_path.stat().st_gid)
    tmp_path.chmod(mode)
    assert build_folder() == host(tmp_path)


def test_a_group_of_the_users_name_is_the_users_own() -> None:
    user = pwd.getpwuid(os.geteuid())
    shared = [group.gr_gid for group in grp.getgrall() if group.gr_name != user.pw_name]
    assert not any(map(build_cache._is_users_own, shared))
    if grp.getgrgid(user.pw_gid).gr_name == user.pw_name:
        assert build_cache._is_users_own(user.pw_gid)


def test_what_is_loaded_does_not_go_through_a_link_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link"))
    assert build_folder() == host(tmp_path / "real")


def test_a_folder_made_here_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "deep/cache"))
    before = os.umask(0)
    try:
        made = build_folder()
    finally:
        os.umask(before)
    assert made == host(tmp_path / "deep/cache")
    assert [path.stat().st_mode & 0o777 for path in (made, made.parent)] == [0o700, 0o700]


def test_hosts_that_share_a_home_do_not_share_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for name in ("one", "two", "a/../b", ""):
        monkeypatch.setattr(build_cache.platform, "node", lambda name=name: name)
        folders.add(build_folder())
    assert {folder.name for folder in folders} == {"one", "two", "a_.._b", "host"}
    assert {folder.parent for folder in folders} == {tmp_path / NAME}


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path, planted: tuple[str, bytes]) -> None:
    (tmp_path / "file").write_text("")
    library, said = load(tmp_path / "file")
    assert "compiled code cannot be kept" in said
    assert library.name == planted[0]


def test_tritons_kernels_lie_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(TRITON, "mine")
    keep_kernels()
    assert os.environ[TRITON] == "mine"
    monkeypatch.delenv(TRITON)
    monkeypatch.delenv("TRITON_HOME", raising=False)
    keep_kernels()
    assert os.environ[TRITON] == str(host(tmp_path) / "triton")
    writable_by_all(tmp_path)
    monkeypatch.delenv(TRITON)
    keep_kernels()
    assert not Path(os.environ[TRITON]).is_relative_to(tmp_path)


def test_tritons_kernels_are_compiled_into_it(tmp_path: Path) -> None:
    """Whoever imports the kernels has told Triton where, before it compiles any."""
    pytest.importorskip("triton")
    script = "import model.ops.fused, triton; print(triton.knobs.cache.dir)"
    environment = {name: value for name, value in os.environ.items() if name not in (TRITON, "TRITON_HOME")}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(host(tmp_path) / "triton")


def test_a_build_leaves_nothing_else_behind(tmp_path: Path, planted: tuple[str, bytes]) -> None:
    library, _ = load(tmp_path)
    assert [path.name for path in host(tmp_path).iterdir()] == [library.name] == [planted[0]]
    shutil.rmtree(tmp_path / NAME)

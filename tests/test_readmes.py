"""What the READMEs link to and call is there: files, headings, entries and their options. `readmes.py` runs them."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from readmes import READMES, ROOT, commands

PAGES = (*READMES, "search/RESULTS.md")
ENTRY = re.compile(r"python ((?:search|trainables|model|tests)/\w+\.py)([^`\n#|]*)")


def anchors(page: Path) -> set[str]:
    """Headings as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def options(entry: str) -> set[str]:
    """The options that an entry's --help lists."""
    line = [sys.executable, str(ROOT / entry), "--help"]
    told = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout
    return set(re.findall(r"--[a-z0-9][a-z0-9-]*", told))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, heading = target.partition("#")
        found = (ROOT / page).parent / name if name else ROOT / page
        assert found.exists(), target
        assert not heading or heading in anchors(found), target


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_entries_and_options_that_are_there(page: str) -> None:
    for entry, rest in ENTRY.findall((ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / entry).is_file(), entry
        wrong = set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*", rest)) - options(entry)
        assert not wrong, (entry, wrong)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:search|trainables|model|tests)/[\w/]+(?:\.\w+)?/?)`", text))
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_root_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_commands_are_found() -> None:
    text = "```sh\npip install x\npython a.py \\\n  --b\n```\n```text\npython c.py\n```\n"
    assert list(commands(text)) == ["python a.py    --b"]
    assert sum(1 for _ in commands((ROOT / "README.md").read_text(encoding="utf-8"))) >= 6

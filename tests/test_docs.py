"""What documentation refers to is there: links between pages, their headings, files, and sections by number."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import btard
from btard.protocol.hashing import PROTOCOL_VERSION

ROOT = Path(__file__).parents[1]
FOLDERS = ("albert", "btard", "configs", "docs", "examples", "notebooks", "resnet", "results", "scripts", "tests")
FILES = sorted([*ROOT.glob("*.*"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.*"))])
PAGES = [file for file in FILES if file.suffix == ".md"]
TEXTS = [file for file in FILES if file.suffix in {".md", ".py", ".yaml", ".sh", ".toml", ".ipynb"}]

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SECTION = re.compile(r"(?i)(?:\bsections?|§)\s*\d")
PAPER = re.compile(r"(?:19|20)\d\d\)?[^.]{0,60}$")
"""What stands before a section of somebody else's paper: a year, and nothing that ends a sentence."""


LIBP2P_KEY = b"\x08\x01\x12\x40"
"""What the file of an Ed25519 private key begins with."""


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    outside = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in LINK.findall(text):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in headings(target), f"{link}: {target.name} has no such heading"


def dangling(text: str) -> list[str]:
    """The sections that `text` refers to by number, but those of papers: our pages have names and no numbers."""
    joined = " ".join(line.strip().lstrip("#").strip() for line in text.splitlines())
    places = [match.start() for match in SECTION.finditer(joined)]
    return [joined[at - 40 : at + 20] for at in places if not PAPER.search(joined[max(0, at - 70) : at])]


@pytest.mark.parametrize(
    ("text", "dangles"),
    [
        ("slow is not malicious (section 8)", True),
        ("Section 3.1: the hashes", True),
        ("since 2021. See sections 3 and 4", True),
        ("Gorbunov et al., ICML 2022, section 4.1", False),
        ("Blanchard et al. (NeurIPS 2017),\n    section 4, Multi-Krum", False),
        ("the section `protocol` of 3 keys", False),
    ],
)
def test_a_section_of_ours_by_number_is_told_from_one_of_a_paper(text: str, dangles: bool) -> None:
    assert bool(dangling(text)) == dangles


def test_nothing_refers_to_a_section_by_a_number_that_no_page_has() -> None:
    found = {str(file.relative_to(ROOT)): dangling(file.read_text()) for file in TEXTS if file != Path(__file__)}
    assert not {name: places for name, places in found.items() if places}


def test_the_files_that_the_pages_name_exist() -> None:
    """`btard/...py`, `docs/...md` and the like in backticks; of the protocol's page also its bare file names."""
    for page in PAGES:
        if page.name in {"migration.md", "CHANGELOG.md"}:  # they name what is gone
            continue
        text = page.read_text()
        for name in re.findall(r"`((?:btard|resnet|albert|scripts|tests|docs|configs|examples)/[\w./-]+\.\w+)`", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
    for name in re.findall(r"`(\w+\.py)`", (ROOT / "docs/protocol.md").read_text()):
        assert (ROOT / "btard/protocol" / name).exists(), f"protocol.md names {name}"


def test_the_modules_that_code_and_pages_name_exist() -> None:
    """`btard.protocol.kind` and the like, and names in them."""
    for file in TEXTS:
        if file.name in {"migration.md", "CHANGELOG.md"} or file.suffix not in {".md", ".py"}:
            continue
        for name in re.findall(r"`((?:btard|resnet|albert|scripts)(?:\.\w+)+)`", file.read_text()):
            service = name.endswith(".service")  # of systemd
            assert service or exists(name.split(".")), f"{file.relative_to(ROOT)} names {name}"


def exists(words: list[str]) -> bool:
    """Whether the first of `words` lead to a module, in which the next one stands."""
    for count in range(len(words), 0, -1):
        path = ROOT.joinpath(*words[:count])
        module = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        if module.exists():
            return count == len(words) or re.search(rf"\b{words[count]}\b", module.read_text()) is not None
    return False


def test_the_citation_has_the_version_of_the_package() -> None:
    assert f"\nversion: {btard.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_page_on_older_versions_has_the_version_of_the_protocol() -> None:
    assert f"The protocol's version is {PROTOCOL_VERSION}." in (ROOT / "docs/migration.md").read_text()


def test_nothing_is_in_the_repository_by_mistake() -> None:
    """A command that is typed as a page has it may leave a file, such as a private key, at the root."""
    listed = subprocess.run(("git", "ls-files"), cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone")
    files = listed.stdout.splitlines()
    known = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"}
    for name in files:
        if "/" not in name and not name.startswith("."):
            assert name in known or re.fullmatch(r"requirements(-\w+)?\.txt", name), f"{name} does not belong here"
    assert not [name for name in files if (ROOT / name).is_file() and (ROOT / name).read_bytes()[:4] == LIBP2P_KEY]

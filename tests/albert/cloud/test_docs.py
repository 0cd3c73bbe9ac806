"""docs/aws.md agrees with the program: keys, commands, and the messages that people will look for."""

import re
from pathlib import Path

from albert.cloud.__main__ import COMMANDS
from albert.cloud.config import Config
from btard.harness.typed_yaml import keys

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
SOURCES = "".join(
    path.read_text(encoding="utf-8")
    for folder in ("albert/cloud", "albert/cloud/machine")
    for path in sorted((ROOT / folder).iterdir())
    if path.is_file()
)
BY_AWS = {"InsufficientInstanceCapacity", "UnfulfillableCapacity", "AWSServiceRoleForEC2Spot", "AWS says"}


def test_every_key_is_explained_and_no_other():
    table = TEXT.partition("## Settings")[2].partition("## Troubleshooting")[0]
    named = {
        name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", row)
    }
    assert named == set(keys(Config))


def test_every_command_is_explained():
    assert [command for command in COMMANDS if f"**`{command}" not in TEXT] == []


def test_every_message_is_one_that_the_program_says():
    table = TEXT.partition("## Troubleshooting")[2].partition("\n## ")[0]
    said = re.sub(r'"\s*\n\s*f?"', "", re.sub(r"\[/?\w*\]", "", SOURCES))  # without colours and broken lines
    unknown = []
    for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", row):
            parts = [part.strip() for part in message.split("...") if part.strip()]
            unknown += [part for part in parts if part not in said and part not in BY_AWS]
    assert unknown == []


def test_links_lead_somewhere():
    heads = {
        re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\(#([\w-]+)\)", TEXT)) <= heads

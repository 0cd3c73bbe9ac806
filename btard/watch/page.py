"""The page as one HTML file that needs no network: library, style, data and program in it.

What others chose (names, kinds, texts) is data: JSON in which no tag can begin, put into the page as text alone. A
policy in the page lets no script run but the two whose digests it names, and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import vl_convert

from btard.watch.charts import charts_of
from btard.watch.folder import Run
from btard.watch.story import story_of

BUNDLE = "window.vegaEmbed = vegaEmbed;"


def content_of(run: Run, audited: Mapping[int, str] | str | None = None) -> dict[str, Any]:
    """The contents of the page: the story and its charts, as JSON values."""
    story = story_of(run, audited)
    return {**story, "charts": charts_of(run, story)}


def json_of(content: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script element, whatever it contains."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def page_of(content: Mapping[str, Any], *, live: bool = False) -> str:
    """The HTML of a page. A `live` page asks its server for news."""
    data, program, library = json_of(content), _asset("page.js"), library_code()
    scripts = " ".join(_digest(code) for code in (library, program))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {'http://localhost:* http://127.0.0.1:*' if live else chr(39) + 'none' + chr(39)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head, body = _asset("page.html").split("<!-- head -->")
    return "".join(
        (
            head,
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n',
            f"<title>{html.escape(str(content['title']))}: BTARD</title>\n",
            f"<style>\n{_asset('page.css')}</style>\n",
            body,
            f'<script type="application/json" id="data" data-live="{"yes" if live else "no"}">{data}</script>\n',
            f"<script>{library}</script>\n<script>{program}</script>\n</body>\n</html>\n",
        )
    )


@cache
def library_code() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the package vl-convert-python."""
    code: str = vl_convert.javascript_bundle(BUNDLE)
    if "</script" in code.lower() or "<!--" in code:
        raise RuntimeError("vl-convert-python: its script cannot stand inside of a page; install version 1.9")
    return code


@cache
def _asset(name: str) -> str:
    return (files("btard.watch") / name).read_text(encoding="utf-8")


@cache
def _digest(code: str) -> str:
    """The name of a script in a policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"

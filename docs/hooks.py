"""What the pages take from outside of their folder, and how examples in docstrings are shown."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "experiments" / "published"
PICTURE = re.compile(r"\((?:\.\./)+experiments/published/")
SORTABLE = re.compile(r"<!-- sortable (\S+) -->")  # on a page: that table, to sort and filter
FRAME = """??? example "Sort and filter all rows"

    <iframe class="sortable" src="{address}" title="{title}" loading="lazy"></iframe>

    [In a tab of its own]({address}){{ target=_blank }}
"""
TABLES = "<!-- tables -->"  # on a page: a list of the tables that can be sorted and filtered
MERMAID = re.compile(
    r"<script type=\"module\">(?:(?!</script>).)*?mermaid.*?</script>", re.DOTALL
)  # a notebook's, remote
TERM = re.compile(r"(?<!\n)\n(?=`*[\w.]+`*: |Raises |Returns )")
EXAMPLE = re.compile(r"(?:^>>> .*\n?)(?:^(?!\s*$).*\n?)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Show docstrings as they are meant: examples as code, arguments and errors each on a line."""

    def on_instance(self, *, obj: griffe.Object, **options: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(r"```pycon\n\g<0>\n```\n", obj.docstring.value)
            obj.docstring.value = TERM.sub("  \n", text)


def on_files(files: Files, config: Any) -> Files:
    """Add the published pictures, and a page of its own for each published table."""
    _tables.cache_clear()  # they may have changed while the pages are served
    for path in sorted(PUBLISHED.rglob("*.png")):
        name = f"published/{path.relative_to(PUBLISHED).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, table in _tables().items():
        files.append(File.generated(config, name, content=_page(table)))
    return files


def on_page_markdown(markdown: str, page: Any, **options: Any) -> str:
    """Point to published pictures where the site has them, embed tables to sort and filter, and list them."""
    up, found = "../" * page.file.src_uri.count("/"), _tables()
    entries = (f"- [{table['title']}]({up}{name}){{ target=_blank }}" for name, table in found.items())

    def frame(place: re.Match[str]) -> str:
        name = f"published/{place[1]}.html"
        return FRAME.format(address=f"{up}{name}", title=found[name]["title"])

    markdown = PICTURE.sub(f"({up}published/", markdown)
    return SORTABLE.sub(frame, markdown).replace(TABLES, "\n".join(entries))


def on_post_page(output: str, **options: Any) -> str:
    """Leave out what notebooks would fetch for diagrams that they do not have."""
    return MERMAID.sub("", output)


@cache  # every page asks, and they are megabytes
def _tables() -> dict[str, dict[str, Any]]:
    """Read the published tables, by the address of their page; figures have no rows to sort."""
    found = {}
    for path in sorted(PUBLISHED.glob("*/table*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found[f"published/{path.parent.name}/{path.stem}.html"] = content
    return found


def _page(table: dict[str, Any]) -> str:
    from experiments.report.page import page
    from experiments.report.rows import FIELDS

    rows = [dict.fromkeys(FIELDS) | row for row in table["rows"]]  # an older file lacks fields
    told = {name: {"command": command} for name, command in table["commands"].items()}
    return page({**table, "rows": rows}, told, imagenet=False, command=None)

"""What the pages take from outside of their folder, and how examples in docstrings are shown."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

from experiments.report.page import body, script
from experiments.report.rows import FIELDS

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "experiments" / "published"
WIDE = "---\nhide: [navigation, toc]\nsearch:\n  exclude: true\n---\n"  # of a table's own page
SORTING = "tablesort.js"  # mkdocs.yml names it
PICTURE = re.compile(r"\((?:\.\./)+experiments/published/")
SORTABLE = re.compile(r"<!-- sortable (\S+) -->")  # on a page: a link to all rows of that table
TABLES = "<!-- tables -->"  # on a page: a list of the published tables
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
        files.append(File.generated(config, f"published/{name}.md", content=_page(name, table)))
    files.append(File.generated(config, SORTING, content=script()))
    return files


def on_page_markdown(markdown: str, page: Any, **options: Any) -> str:
    """Point to published pictures where the site has them, and to the published tables."""
    up, found = "../" * page.file.src_uri.count("/"), _tables()

    def link(name: str) -> str:
        return f"[{found[name]['title']}]({up}published/{name}.md)"

    markdown = PICTURE.sub(f"({up}published/", markdown)
    markdown = SORTABLE.sub(lambda place: f"All rows, to sort: {link(place[1])}", markdown)
    return markdown.replace(TABLES, "\n".join(f"- {link(name)}" for name in found))


def on_post_page(output: str, **options: Any) -> str:
    """Leave out what notebooks would fetch for diagrams that they do not have."""
    return MERMAID.sub("", output)


@cache  # every page asks, and they are megabytes
def _tables() -> dict[str, dict[str, Any]]:
    """Read the published tables, by the name of their file; figures have no rows."""
    paths = sorted(PUBLISHED.glob("*/table*.json"))
    return {f"{path.parent.name}/{path.stem}": json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _page(name: str, table: dict[str, Any]) -> str:
    """Write a table's page: all of its rows, in a table that sorts."""
    rows = [dict.fromkeys(FIELDS) | row for row in table["rows"]]  # an older file lacks fields
    plots = [path.name for path in sorted((PUBLISHED / name).parent.glob(f"{Path(name).name}_*.png"))]
    head = f"{WIDE}# {table['title']}\n\nA click on a column's head sorts the rows.\n\n"
    return head + body({**table, "rows": rows}, table["commands"], plots)

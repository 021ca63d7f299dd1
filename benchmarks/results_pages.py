"""Sections of the pages in `results`."""

from pathlib import Path


def write_section(page: str, heading: str, text: str) -> None:
    """Replace a section of a page, or add it."""
    path = Path(__file__).with_name("results") / f"{page}.md"
    before = path.read_text() if path.exists() else f"# {page.capitalize()}\n"
    start = before.find(f"\n## {heading}\n")
    start = len(before) if start < 0 else start
    end = before.find("\n## ", start + 1)
    after = "" if end < 0 else before[end:]
    path.write_text(f"{before[:start].rstrip()}\n\n## {heading}\n\n{text.strip()}\n{after}")


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])

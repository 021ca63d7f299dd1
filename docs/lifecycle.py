"""The picture of the lifecycle, `docs/_static/lifecycle.svg`: seven stages, their outcomes, and the way back."""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

from mlcycle.outcomes import OUTCOME_TYPES, STAGES

FILE = Path(__file__).parent / "_static" / "lifecycle.svg"
ABOUT = {
    "problem": ["target, metric,", "criteria, feasibility"],
    "data": ["contract, cleaning,", "versions, split"],
    "features": ["leakage, creation,", "selection"],
    "modelling": ["search, ensemble,", "registry"],
    "validation": ["gates decided on", "the holdout"],
    "deployment": ["bundle, service,", "parity"],
    "monitoring": ["latency, quality,", "drift, action"],
}
WIDTH, HEIGHT, GAP, LEFT, TOP = 132, 84, 14, 12, 40
CAPTION = "One notebook a stage: source of the library, program that papermill runs, report, documentation"
WAY_BACK = "back to the earliest stage that must act: new labels, new features, a new model"
INK = "#33475b"
STYLE = "font-family: ui-sans-serif, system-ui, sans-serif; text-anchor: middle"


def text(x: float, y: float, words: str, size: int, colour: str, weight: int = 400) -> str:
    """A centred line of text."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{colour}">{escape(words)}</text>'


def stage_box(number: int, stage: str) -> list[str]:
    """A box with the name of a stage and what it decides; its outcome below."""
    x = LEFT + number * (WIDTH + GAP)
    middle = x + WIDTH / 2
    about = [text(middle, TOP + 48 + 16 * line, words, 12, INK) for line, words in enumerate(ABOUT[stage])]
    return [
        f'<rect x="{x}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#e8f1fa" stroke="#0173b2"/>',
        text(middle, TOP + 24, f"{number + 1}  {stage}", 15, "#0b2e4a", 700),
        *about,
        text(middle, TOP + HEIGHT + 22, OUTCOME_TYPES[stage].__name__, 13, "#a34a00", 600),
    ]


def arrow(points: str, dashed: bool = False) -> str:
    """A line with a head at its end."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{points}" fill="none" stroke="#56697d" stroke-width="1.5"{dash} marker-end="url(#head)"/>'


def draw_lifecycle() -> str:
    """The picture as SVG."""
    step, right, base = WIDTH + GAP, LEFT + 7 * (WIDTH + GAP) - GAP, TOP + HEIGHT + 34
    middles = [LEFT + number * step + WIDTH / 2 for number in range(len(STAGES))]
    size = f"{right + LEFT} {base + 62}"
    forward = [arrow(f"M{LEFT + n * step - GAP} {TOP + HEIGHT / 2:g} h{GAP - 2}") for n in range(1, len(STAGES))]
    back = [arrow(f"M{middles[-1]:g} {base} v20 H{middles[n]:g} v-18", dashed=True) for n in range(4)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img" style="{STYLE}">',
        "<title>The lifecycle: seven stages, each with its outcome; monitoring leads back to an earlier stage</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#56697d"/></marker></defs>',
        f'<rect width="{right + LEFT}" height="{base + 62}" rx="10" fill="#ffffff"/>',
        text((right + LEFT) / 2, 25, CAPTION, 14, INK),
        *[line for number, stage in enumerate(STAGES) for line in stage_box(number, stage)],
        *forward,
        *back,
        text((right + LEFT) / 2, base + 42, WAY_BACK, 13, INK),
        "</svg>\n",
    ])  # fmt: skip


if __name__ == "__main__":  # With `-`, it is printed
    print(draw_lifecycle(), end="") if sys.argv[1:] == ["-"] else FILE.write_text(draw_lifecycle())

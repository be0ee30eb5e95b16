#!/usr/bin/env python
"""Draw docs/architecture.svg: the data path of a run, from the text below.

scripts/draw_architecture.py [OUTPUT]        default: docs/architecture.svg
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "architecture.svg"
COLUMN, GAP, MARGIN = 226, 26, 24
STAGE_TOP, STAGE_HEIGHT = 96, 112
DATA_TOP, DATA_HEIGHT = 262, 74
LINE = "#52606d"
COLOURS = {
    "Spark job": "#2f6f9f",
    "barrier stage": "#9a4f1f",
    "driver": "#4d6b3c",
    "executor or driver": "#4d6b3c",
    "driver or barrier stage": "#9a4f1f",
}
STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1d2733; }
  .title { font-size: 20px; font-weight: 600; }
  .name { font-size: 17px; font-weight: 600; fill: #ffffff; }
  .where { font-size: 12px; fill: #ffffff; }
  .note { font-size: 12.5px; fill: #ffffff; }
  .data { font-size: 13px; }
  .label { font-size: 12.5px; fill: #52606d; }
"""


@dataclass(frozen=True)
class StageBox:
    """A stage of the pipeline and what it writes.

    Attributes
    ----------
    name : str
        Of the command.
    where : str
        What runs it, a key of `COLOURS`.
    notes : tuple of str
        What it does, a line each.
    writes : tuple of str
        Tables and files, a line each.
    """

    name: str
    where: str
    notes: tuple[str, ...]
    writes: tuple[str, ...]


ROWS = (
    (
        StageBox("corpus", "Spark job", ("read, clean, drop duplicates,", "hold documents out"), ("table documents",)),
        StageBox(
            "vocabulary",
            "Spark job",
            ("tokenise once, count tokens,", "encode"),
            ("table vocabulary", "token shards (_encoded)"),
        ),
        StageBox(
            "cooccurrence",
            "Spark job",
            ("exact int64 counts per batch,", "packed blobs, one sum per", "row block"),
            ("table cooccurrence", "table marginals"),
        ),
        StageBox(
            "train",
            "barrier stage",
            ("WALS: one rank per GPU or slot,", "torch.distributed collectives,", "checkpoint per half-sweep"),
            ("table factors", "checkpoints of the training"),
        ),
    ),
    (
        StageBox(
            "export, neighbours",
            "executor or driver",
            ("word2vec, safetensors, npy;", "exact top-k by cosine"),
            ("runs/<run>/export/", "runs/<run>/neighbours.json"),
        ),
        StageBox(
            "states",
            "Spark job",
            ("a sample of the shards through", "the frozen encoder, masked", "several times"),
            ("runs/<run>/states/",),
        ),
        StageBox(
            "inject",
            "driver or barrier stage",
            ("fit rows to states, or align and", "blend factors; gate, write whole;", "verify proves it"),
            ("runs/<run>/model-<mode>/", "injection.json, model card"),
        ),
        StageBox(
            "evaluate",
            "driver",
            ("similarity, masked-LM loss,", "rare tokens, controls,", "intervals, gate"),
            ("table metrics", "report-<mode>.html"),
        ),
    ),
)
ROW_HEIGHT = 290


def text(x: float, y: float, content: str, kind: str) -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(content)}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line with a head at its end."""
    ends = f'x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"'
    return f'<line {ends} stroke="{LINE}" stroke-width="1.6" marker-end="url(#head)"/>'


def column(number: int) -> float:
    """The left edge of a column."""
    return MARGIN + number * (COLUMN + GAP)


def draw_stage(box: StageBox, number: int, top: float) -> list[str]:
    """A stage with its tables below it."""
    x, y = column(number), top + STAGE_TOP
    shapes = [
        f'<rect x="{x:g}" y="{y:g}" width="{COLUMN}" height="{STAGE_HEIGHT}" rx="8" fill="{COLOURS[box.where]}"/>',
        text(x + 12, y + 25, box.name, "name"),
        text(x + 12, y + 43, box.where, "where"),
    ]
    shapes += [text(x + 12, y + 64 + 16 * line, note, "note") for line, note in enumerate(box.notes)]
    below = top + DATA_TOP
    shapes.append(arrow(x + COLUMN / 2, y + STAGE_HEIGHT, x + COLUMN / 2, below - 3))
    size = f'x="{x:g}" y="{below:g}" width="{COLUMN}" height="{DATA_HEIGHT - 22}"'
    shapes.append(f'<rect {size} rx="3" fill="#ffffff" stroke="#9aa5b1"/>')
    shapes += [text(x + 10, below + 21 + 18 * line, name, "data") for line, name in enumerate(box.writes)]
    return shapes


def draw() -> str:
    """The picture as SVG."""
    width = 2 * MARGIN + 4 * COLUMN + 3 * GAP
    height = 2 * ROW_HEIGHT + 96
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="The data path of a run, from documents to an evaluated checkpoint">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#52606d"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="10" fill="#f5f7fa"/>',
        text(
            MARGIN,
            38,
            "Documents become counts, counts become factors, factors become a checkpoint",
            "title",
        ),
        text(
            MARGIN,
            62,
            "A batch belongs to the warehouse and is counted once; a run trains on the exact sum of any batches.",
            "label",
        ),
    ]
    for row, boxes in enumerate(ROWS):
        top = row * ROW_HEIGHT
        for number, box in enumerate(boxes):
            shapes += draw_stage(box, number, top)
            if number + 1 < len(boxes) and row == 0:
                y = top + STAGE_TOP + STAGE_HEIGHT / 2
                shapes.append(arrow(column(number) + COLUMN, y, column(number + 1) - 3, y))
    shapes += link_rows()
    shapes.append(
        text(
            MARGIN,
            height - 22,
            "Every stage checks, locks its output, runs, writes its data, then its manifest.",
            "label",
        )
    )
    return "\n".join([*shapes, "</svg>", ""])


def link_rows() -> list[str]:
    """The factors feed the stages of the second row but `states`, which is drawn from the shards and feeds `inject`."""
    rail = DATA_TOP + DATA_HEIGHT + 16
    source = column(3) + COLUMN / 2
    first = column(0) + COLUMN / 2
    path = f"M{source:g} {DATA_TOP + DATA_HEIGHT - 22:g} V{rail:g} H{first:g}"
    lines = [f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6"/>']
    target = ROW_HEIGHT + STAGE_TOP - 3
    y = ROW_HEIGHT + STAGE_TOP + STAGE_HEIGHT / 2
    lines.append(arrow(column(1) + COLUMN, y, column(2) - 3, y))
    return lines + [arrow(column(n) + COLUMN / 2, rail, column(n) + COLUMN / 2, target) for n in (0, 2, 3)]


def main(arguments: list[str]) -> None:
    """Write the picture."""
    (Path(arguments[0]) if arguments else OUTPUT).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

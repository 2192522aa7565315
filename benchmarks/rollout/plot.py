"""Draws docs/confidence_sequence.svg: what an engineer sees of a metric while the outcomes come in.

python benchmarks/rollout/plot.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rollout import worlds
from benchmarks.rollout.worlds import BOUND
from mlops_ray.rollout.evidence import lower_bound, within

PICTURE = Path(__file__).parents[2] / "docs/confidence_sequence.svg"
ALPHA, MARGIN, N = 0.05, 0.02, 3000
WIDTH, HEIGHT, TOP = 720, 260, 0.12


def place(n: float, y: float) -> str:
    return f"{60 + (WIDTH - 80) * n / N:.1f},{HEIGHT / 2 - (HEIGHT / 2 - 30) * max(min(y / TOP, 1), -1):.1f}"


def drawing(x: np.ndarray, title: str, shift: int) -> str:
    looks = list(range(20, N + 1, 20))
    low = [lower_bound(within(x[:n], -BOUND, BOUND), 0.0, ALPHA / 2) for n in looks]
    high = [-lower_bound(within(-x[:n], -BOUND, BOUND), -MARGIN, ALPHA / 2) for n in looks]
    mean = [float(x[:n].mean()) for n in looks]
    band = " ".join([*map(place, looks, low), *reversed([*map(place, looks, high)])])
    line = " ".join(map(place, looks, mean))
    decided = next(
        (
            (n, "proven fine" if h < MARGIN else "proven worse")
            for n, a, h in zip(looks, low, high, strict=True)
            if h < MARGIN or a > 0
        ),
        None,
    )
    marks = ""
    if decided:
        at = place(decided[0], 0).split(",")[0]
        marks = (
            f'<line x1="{at}" y1="30" x2="{at}" y2="{HEIGHT - 30}" stroke="#555" stroke-dasharray="2 3"/>'
            f'<text x="{float(at) + 6:.1f}" y="44">{decided[1]} after {decided[0]} keys</text>'
        )
    levels = "".join(
        f'<line x1="60" x2="{WIDTH - 20}" y1="{y}" y2="{y}" stroke="{colour}"{dash}/>'
        f'<text x="54" y="{float(y) + 4:.1f}" text-anchor="end">{name}</text>'
        for name, value, colour, dash in (
            ("0", 0.0, "#888", ""),
            ("margin", MARGIN, "#b33", ' stroke-dasharray="6 4"'),
            (f"+{TOP:g}", TOP, "#ddd", ""),
            (f"-{TOP:g}", -TOP, "#ddd", ""),
        )
        for y in [place(0, value).split(",")[1]]
    )
    return (
        f'<g transform="translate(0 {shift})"><text x="60" y="20" font-weight="bold">{title}</text>{levels}'
        f'<polygon points="{band}" fill="#4a7fb5" fill-opacity="0.25"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f4e79" stroke-width="1.5"/>{marks}'
        f'<text x="{WIDTH - 20}" y="{HEIGHT - 8}" text-anchor="end">keys seen, 0 to {N:,}</text></g>'
    )


def main() -> None:
    rng = np.random.default_rng(3)
    equal = worlds.gaps(rng, (N,))
    worse = worlds.gaps(rng, (N,), worse=0.04)
    body = drawing(equal, "An equal canary: log-loss minus stable's, mean and 95 % confidence sequence", 0)
    body += drawing(worse, "A canary worse by 0.04 nats", HEIGHT)
    size = f'viewBox="0 0 {WIDTH} {2 * HEIGHT}" width="{WIDTH}" height="{2 * HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" fill="#fff"/>'
    PICTURE.write_text(f"{head}{body}</svg>\n", encoding="utf-8")


if __name__ == "__main__":
    main()

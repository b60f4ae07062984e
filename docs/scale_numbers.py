"""The figures of docs/scale.md: `python docs/scale_numbers.py`. Computed, not measured; the engines' own estimates."""

from __future__ import annotations

import math

from index.engines import FAISS

SIZES, DIMENSION = (10**7, 10**8, 10**9), 384
MACHINE = 64 * 2**30 * 0.75
"""Bytes of a 64 GiB machine that may hold an index."""
READ = 9e9
"""Bytes a second that one core compares: 100,000 x 384 floats in 17 ms."""


def main() -> None:
    print("| vectors | engine | memory | machines of 64 GiB |\n|---|---|---|---|")
    for size in SIZES:
        for kind, engine in FAISS.items():
            memory = engine.memory(size, DIMENSION)
            print(f"| 10^{round(math.log10(size))} | {kind} | {memory / 1e9:,.0f} GB | {math.ceil(memory / MACHINE)} |")
    print("\n| vectors | vectors on disk | exact scan, one core | exact calibration, 4,000 queries | unrelated best |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        whole = 4 * DIMENSION * size
        flops = 2 * 4000 * size * DIMENSION / 1e11
        nearest = math.sqrt(2 * math.log(size) / DIMENSION)
        print(
            f"| 10^{round(math.log10(size))} | {whole / 1e9:,.0f} GB | {whole / READ:,.1f} s | {flops / 60:,.0f} min | "
            f"{nearest:.2f} |"
        )


if __name__ == "__main__":
    main()

"""Write scikit-learn's 1,797 real handwritten digits as a folder of PNG files, without labels.

    python make_images.py [FOLDER]

FOLDER is digits/ unless it is given. What each picture shows is in truth.csv beside it, for
`fastbadge label init --import` and to see afterwards how well you labelled.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SCALE = 16  # of 8 x 8 pixels one sees little


def main(folder: Path) -> None:
    """Write the pictures and truth.csv; a folder that is there is refused."""
    digits = load_digits()
    folder.mkdir(parents=True)
    order = np.random.default_rng(0).permutation(len(digits.images))  # its own is by writer
    with (folder.parent / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["name", "label"])
        for number, i in enumerate(order):
            name = f"{number:04}.png"
            grey = np.round(digits.images[i] * (255 / 16)).astype(np.uint8)
            Image.fromarray(grey).resize((8 * SCALE, 8 * SCALE), Image.Resampling.NEAREST).save(
                folder / name
            )
            table.writerow([name, digits.target[i]])
    print(f"{len(order):,} pictures in {folder}; what they show: {folder.parent / 'truth.csv'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits"))

"""Draw a dataset of phantoms for a benchmark: python benchmarks/phantoms.py teeth phantoms/teeth --labelled 32."""

from __future__ import annotations

import argparse
from pathlib import Path

from medssl.data.phantoms import KINDS, write_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--labelled", type=int, required=True, help="number of labelled cases, for all parts of a split together"
    )
    parser.add_argument("--unlabelled", type=int, default=0, help="number of cases without a label")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_dataset(
        options.folder, options.kind, labelled=options.labelled, unlabelled=options.unlabelled, seed=options.seed
    )


if __name__ == "__main__":
    main()

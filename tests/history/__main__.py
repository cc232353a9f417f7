"""`python -m tests.history --minutes 10 --seed 1`: a soak. Exits with 1 where the history cannot be explained."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.history.run import run


def main() -> int:
    """Run once, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.history", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long clients work (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides what is done and broken (default %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="clients at the same time (default %(default)s)")
    given = parser.parse_args()
    seconds = given.minutes * 60
    result = asyncio.run(run(seconds=seconds, seed=given.seed, clients=given.clients, gateway_kills_until=seconds))
    print(result.summary)
    for wrong in result.wrong:
        print(f"WRONG {wrong}")
    if result.wrong:
        print(result.logs)
        return 1
    print("nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m devcluster up|need|down|status|purge|build`: a real one-node Kubernetes on this machine.

Uses the standard library alone, so that any Python >= 3.11 starts it.
"""

import argparse
import os
import sys
from pathlib import Path

from devcluster.builds import build_all
from devcluster.life import down, status, up
from devcluster.machine import widen_path
from devcluster.places import Places
from devcluster.trouble import ClusterError, say

VERBS = {
    "up": "build what is missing, heal what a killed run left, start; safe to repeat",
    "need": "up, unless KUBECONFIG names another cluster",
    "down": "end every process, pod, mount, interface and rule; keep the state",
    "status": "say what runs",
    "purge": "down, and remove the state too; what was built stays",
    "build": "build only",
}


def other_cluster(named: str, places: Places) -> str:
    """Return the kubeconfig of a cluster that is not this one; empty where nothing, or this one, is named."""
    return named if named and Path(named).resolve() != places.kubeconfig.resolve() else ""


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = argparse.ArgumentParser(prog="devcluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in VERBS.items():
        verbs.add_parser(verb, help=what)
    places = Places.of_this_machine()
    try:
        match parser.parse_args().verb:
            case "up":
                up(places)
            case "need":
                if other := other_cluster(os.environ.get("KUBECONFIG", ""), places):
                    say(f"KUBECONFIG names another cluster, {other}: the development cluster is left alone")
                else:
                    up(places)
            case "down":
                down(places)
            case "purge":
                down(places, everything=True)
            case "build":
                widen_path()
                build_all(places)
            case _:
                return 0 if status(places) else 1
    except ClusterError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

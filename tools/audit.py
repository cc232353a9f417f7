"""`make audit`: asks the advisory databases about every locked dependency, where they are within reach.

Exits 1 when a locked version is known to be vulnerable. A database out of reach is no failure of the
dependencies: the reason is printed, and CI goes on.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
SECONDS = 180


def main() -> int:
    """Print what is known and return the exit code."""
    options = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "--timeout", "15", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), *options]
    result = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    try:
        dependencies = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        print(f"audit: not done, the advisory database is out of reach: {' '.join(reason)[:300]}")
        return 0
    audited = [dependency for dependency in dependencies if "vulns" in dependency]
    vulnerable = [dependency for dependency in audited if dependency["vulns"]]
    if not audited:
        print("audit: not done, the advisory database is out of reach: it answered for no dependency")
        return 0
    for dependency in vulnerable:
        for advisory in dependency["vulns"]:
            fixed = ", ".join(advisory["fix_versions"]) or "nowhere yet"
            print(f"audit: {dependency['name']} {dependency['version']}: {advisory['id']}, fixed in {fixed}")
    print(f"audit: {len(audited)} of {len(dependencies)} dependencies audited, {len(vulnerable)} vulnerable")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())

import subprocess

from sandboxd.dev.gemini_cli import ensure_gemini_cli


def test_the_installed_gemini_cli_starts_and_is_the_pinned_one(tmp_path: object) -> None:
    cli = ensure_gemini_cli(print)

    answer = subprocess.run(
        [cli.node, cli.entry, "--version"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "GEMINI_CLI_NO_RELAUNCH": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert answer.stdout.strip() == cli.version

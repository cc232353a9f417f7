"""A repository of backups kept by restic, which runs as a child process (ADR 0044)."""

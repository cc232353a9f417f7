"""`gemini -o stream-json`: a process per prompt. The fallback: no thoughts, no permission requests; must not do I/O."""

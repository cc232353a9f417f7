"""Gemini sessions: bytes in, events out, turns and their order; must not know a transport or a database."""

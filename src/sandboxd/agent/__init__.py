"""The process supervisor inside a sandbox, and the client that talks to it; knows nothing of Gemini or billing."""

"""The only holder of API keys: the metering reverse proxy for the Gemini API."""

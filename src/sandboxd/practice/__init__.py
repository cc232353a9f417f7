"""The practice model: a small scripted stand-in for the Gemini API, for demos and development without a key.

It is not Gemini and says so in its answers. It must not be used where anybody could take it for the real thing.
"""

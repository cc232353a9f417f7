"""sandboxd: persistent sandboxes with Gemini CLI in them, behind one gRPC service.

Must stay light: the agent imports this package inside every sandbox.
"""

__version__ = "0.1.0"

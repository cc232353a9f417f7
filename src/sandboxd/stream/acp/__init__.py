"""`gemini --acp`: JSON-RPC over the CLI's stdio, one object a line; must not know the driver, the agent or a clock."""

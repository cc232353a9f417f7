"""The frame around every RPC. From outside: log, metrics, errors, deadline, caller, permission, validation."""

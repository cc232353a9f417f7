"""Usage and audit as the service sees them; must not know a transport or a database."""

"""What can be done with sandboxes: create, pause, resume, terminate; must not know a transport or a database."""

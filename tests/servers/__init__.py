"""Real servers for the tests, started in this environment and stopped by process id."""

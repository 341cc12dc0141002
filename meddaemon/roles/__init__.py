"""What each process of the daemon does; only what a role needs is imported by it."""

"""The worker's side of the queue: claim, keep the lease, work, and turn errors into outcomes."""

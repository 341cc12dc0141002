"""From bytes on a socket to a complete, matched study: receive, store, recover, match."""

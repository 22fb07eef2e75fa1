"""What one process does for the whole fleet, as long as it holds the lease."""

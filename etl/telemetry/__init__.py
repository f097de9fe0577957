"""Who is told? Events become log lines, progress and metrics."""

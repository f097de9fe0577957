"""Which setting? Flags, environment and file become settings and tokens."""

"""How long a test waits for what takes a moment: only to end one that hangs, however busy the machine is."""

PATIENCE_SECONDS = 300.0

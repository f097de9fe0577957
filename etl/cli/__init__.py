"""What did they type? Arguments, environment and signals in, an exit code out. It knows every room below."""

"""Which JSON key? Answers of the API become rows. It is pure."""

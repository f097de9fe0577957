"""Which table? What is read and written, in SQLAlchemy Core. It knows no HTTP, and no dialect by its name."""

"""The history of the tables and views: `versions` calls what `columns` and `views` offer."""

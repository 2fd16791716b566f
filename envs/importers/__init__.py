"""Cards of other collections: rows are read, and a map in ``configs/importers`` says what becomes of each field."""

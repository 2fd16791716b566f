"""Cards of other collections: rows are read from files, and a map in ``configs/importers`` says what becomes of each field."""

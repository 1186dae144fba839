"""The tables of the documents, by subject."""

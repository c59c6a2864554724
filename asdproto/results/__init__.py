"""What a run leaves behind, and how people look at it: files, tables, plots, the report."""

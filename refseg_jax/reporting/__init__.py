"""What a run shows: metric files, tables, pictures and the parameter table."""

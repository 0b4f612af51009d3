"""A run -> one HTML page that shows it from the input files to the scores."""

"""Documents -> documents without duplicates (Beam)."""

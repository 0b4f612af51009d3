"""The ground floor: a dump, books or documents become training examples."""

"""Promoted models: a log of events under <root>/promoted/NAME/, and what NAME@promoted means."""

"""A model and one or two texts -> a page that shows what the model makes of them."""

"""Documents -> a WordPiece vocabulary (Ray Data)."""

"""The model, its optimizer, mixed precision and hardware detection."""

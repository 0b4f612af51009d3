"""The model and what a step of it needs: layers, optimizer, precision, hardware."""

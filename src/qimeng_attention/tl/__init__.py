"""TL: one language for sketch, code and scheduled code."""

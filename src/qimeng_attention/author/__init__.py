"""Authors: from a specification to TL code."""

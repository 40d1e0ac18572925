"""Ways in for what others have written already. Each imports its library when it is called, never before."""

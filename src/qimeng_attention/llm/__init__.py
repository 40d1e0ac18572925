"""Language models: what is said to them and back, and every way in which that may fail.

Not here: what to say (author/llm), what becomes of an answer (workflow).
"""

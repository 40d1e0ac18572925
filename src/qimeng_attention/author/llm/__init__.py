"""The author that asks a language model: prompts as data, methods as lists of them, and what an answer holds.

Not here: who answers (llm), what becomes of a program (workflow).
"""

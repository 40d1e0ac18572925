"""Methods and models compared: requests in words, what came of each sample, and what the samples say together.

Pure data and statistics: nothing here asks a model or runs a gate.
"""

"""Other libraries: kernels inside them, and what was written for them taken as descriptions.

Each module knows one library and imports it when it is called, never before.
"""

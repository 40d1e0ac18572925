"""Kernels inside other libraries: each module here knows one of them and imports it when it is used."""

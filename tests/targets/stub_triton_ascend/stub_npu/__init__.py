"""A Triton backend like triton-ascend's: an adapter that writes the MLIR of a fixed kernel.

STUB_VENDOR in the environment makes it misbehave: "adapter" (it refuses), "huge" (a tile that does
not fit), "crash in compile".
"""

"""A Triton backend of no device: it calls itself MUSA and stops at Triton's first IR.

STUB_VENDOR in the environment makes it misbehave: "crash", "hang", "inactive", "cuda" (drives
another backend), "no shared" and "no stages" (fields that are missing), "crash in compile".
"""

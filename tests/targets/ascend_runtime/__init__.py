"""The launcher for Ascend cards, against libraries that record its calls and run its kernels.

It says that arguments, buffers, streams, waits and errors are handled as CANN's headers ask. It
says nothing of a real card.
"""

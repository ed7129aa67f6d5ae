"""The second way to an Ascend NPU, for comparison: our Triton kernels through triton-ascend."""

"""What the Ascend lowerings share: tile programs in TIR, FP8 by bits, GEMM stages."""

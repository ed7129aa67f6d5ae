"""Runs compiled kernels on an Ascend NPU through Huawei's CANN; not run on hardware so far."""

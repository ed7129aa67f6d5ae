"""What the Triton lowerings share."""

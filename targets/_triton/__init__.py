"""What all targets that take Triton lowerings share."""

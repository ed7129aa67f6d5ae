"""TVMScript pieces that several lowerings share; parameters are plain Python values."""

"""What a user would call instead of ours on a CPU: torch's forms and ggml, each in its process."""

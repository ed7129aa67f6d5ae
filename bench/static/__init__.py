"""A gate without noise or device: what every named config compiles to, against a file in git."""

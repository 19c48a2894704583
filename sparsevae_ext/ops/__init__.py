"""One file per op: autograd, checks, fake kernel, and the plain-torch reference."""

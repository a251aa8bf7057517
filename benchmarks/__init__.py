"""How fast sandboxes are, next to the least that the kernel takes for the same (floor.c) and to Docker. `make bench`."""

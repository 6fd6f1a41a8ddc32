"""How annotations lie on disk: archives, COCO JSON, label maps, .mat, JSON lines, mask files."""

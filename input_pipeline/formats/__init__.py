"""Readers of annotation formats: archives, COCO JSON, label maps, .mat, JSON lines, mask files."""

"""Where files lie: on disks, with locks, or in buckets."""

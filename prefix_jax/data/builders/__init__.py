"""TFDS builders for data sets that TFDS itself does not have."""

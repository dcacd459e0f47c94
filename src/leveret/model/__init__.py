"""The decoder and everything that describes it: config, parts, families, counts."""

"""Data: sources (formats), parts and shards (who holds which rows), order (the shuffle), scaling."""

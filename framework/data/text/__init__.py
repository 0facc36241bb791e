"""Text by shards: read, cleaned, made tokens, each shard by itself and whole or not at all."""

"""Runs programs that nobody trusts: `client` asks, `zygote` forks, `confine` takes rights away, `program` runs."""
